"""WiSE-FT: weights between those that a run starts from and those that it ends with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shiftproof.training.averaging.state import State, blend, copy_state

COEFFICIENTS = tuple(tenths / 10 for tenths in range(11))
"""The shares of the last weights among which validation chooses."""


class WiSEFT:
    r"""Interpolation :math:`(1 - \alpha) \theta_0 + \alpha \theta_1` of the first and the last weights of a run.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (arXiv 2109.01903), section 3. There
    the start is a zero-shot model, and :math:`\alpha` is one half or chosen by held-out inputs of the distribution
    trained on.

    Args:
        start: the weights before the first update.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self._start = copy_state(start)

    def between(self, end: Mapping[str, Tensor], coefficient: float) -> State:
        """Return the weights that are the share ``coefficient`` of the way from the first to the last ones."""
        weights = copy_state(self._start)
        blend(weights, end, coefficient)
        return weights
