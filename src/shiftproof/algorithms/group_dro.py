"""Group distributionally robust optimization (Sagawa et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import losses_by_domain, passed
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.models import Network


class GroupDRO(Algorithm):
    r"""Group DRO (Sagawa, Koh, Hashimoto and Liang, ICLR 2020, algorithm 1), the groups being the source domains.

    .. math:: q_e \leftarrow \frac{q_e \exp(\eta L_e)}{\sum_i q_i \exp(\eta L_i)}, \quad L = \sum_e q_e L_e

    The weights :math:`q` start equal, and count as constants in the gradient. The paper draws one group per step; here,
    as in DomainBed, every step sees all groups. With one source domain this is ERM.

    The code behind DomainBed's published table divides the loss by the number of domains, and so does SWAD's;
    DomainBed's later code does not, nor does the paper. To optimizers that are invariant to the scale of the gradient
    it makes no difference. Under SGD it divides the learning rate, and where weight decay is part of the gradient it
    gives that more weight.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        eta: step size of the weights, at least 0.
        divided: whether the loss is divided by the number of domains, as in DomainBed's published table and SWAD.
        separate_passes: whether every domain passes through the network on its own, as in DomainBed, so that batch
            norms that are not frozen see one domain at a time.

    Attributes:
        q: the weights (num_domains,) after the last step.

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "eta": Hparam(0.01, log10_uniform(-3, -1), seed_name="groupdro_eta"),
        "divided": option(False, True, ("domainbed", "swad")),
        "separate_passes": option(False, True),
    }
    accumulates: ClassVar[bool] = False
    q: Tensor

    def __init__(
        self,
        network: Network,
        num_domains: int,
        *,
        eta: float = 0.01,
        divided: bool = False,
        separate_passes: bool = False,
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= eta < math.inf:
            raise ValueError(f"Invalid eta value: {eta}; it must be at least 0")
        self.eta, self.divided, self.separate_passes = eta, divided, separate_passes
        self.register_buffer("q", torch.full((num_domains,), 1 / num_domains))

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the weighted sum of the domains' losses."""
        logits = passed(self.network, self.predict, batches, self.separate_passes)
        losses = losses_by_domain(logits, batches, self.network.loss)
        q = (self.q.log() + self.eta * losses.detach()).softmax(0)  # normalised without overflow
        self.carry("q", q)
        loss = (q * losses).sum()  # autocast would compute a matrix product in bfloat16
        return loss / len(batches) if self.divided else loss


ALGORITHMS.register("groupdro", GroupDRO)
