"""Learning rates that fall from the last block of a featurizer to the first."""

from __future__ import annotations

from torch import nn

from shiftproof.models import blocks


def layer_ratios(featurizer: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    r"""Return the ratio of every parameter's learning rate to the run's.

    With :math:`L` `blocks`, counted from 0 for the first, the ratio in block :math:`k` is :math:`d^{L - k}`. The last
    block thus has :math:`d`, one layer below the classifier, which is no part of the featurizer and keeps the run's
    rate. Parameters in no block, such as a transformer's positions and class token, have the first block's.

    This is the fine-tuning of ELECTRA (Clark et al., ICLR 2020, arXiv 2003.10555) and BEiT (Bao et al., ICLR 2022,
    arXiv 2106.08254), and timm's ``param_groups_layer_decay``. BEiT's code gives a transformer's last normalisation the
    classifier's rate; here as in timm's it is part of the last block. ELECTRA's code gives the last layer :math:`d^2`,
    which its authors call an error.

    Args:
        featurizer: the featurizer.
        decay: the factor :math:`d` from a block to the one before, in (0, 1].
    """
    found = blocks(featurizer)
    ratios = dict.fromkeys(featurizer.parameters(), decay ** len(found))
    for k, block in enumerate(found):
        for part in block.parts:
            ratios |= dict.fromkeys(featurizer.get_submodule(part).parameters(), decay ** (len(found) - k))
    return ratios
