"""Group distributionally robust optimization (Sagawa et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import losses_by_domain, passed, row_losses, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, log10_uniform, option
from shiftproof.models import Network

Groups = Literal["domains", "domains_and_classes"]


class GroupDRO(Algorithm):
    r"""Group DRO (Sagawa, Koh, Hashimoto and Liang, ICLR 2020, algorithm 1), by default of the source domains.

    .. math:: q_e \leftarrow \frac{q_e \exp(\eta L_e)}{\sum_i q_i \exp(\eta L_i)}, \quad L = \sum_e q_e L_e

    The weights :math:`q` start equal, and count as constants in the gradient. The paper draws one group per step; here,
    as in DomainBed, every step sees all groups. With one source domain this is ERM.

    The code behind DomainBed's published table divides the loss by the number of domains, and so does SWAD's;
    DomainBed's later code does not, nor does the paper. To optimizers that are invariant to the scale of the gradient
    it makes no difference. Under SGD it divides the learning rate, and where weight decay is part of the gradient it
    gives that more weight.

    The paper's groups are those of an attribute and a class. If the attribute is the domain, ``groups`` has them as
    ``domains_and_classes``: :math:`L_e` is then the mean loss of a domain's images of one class, and counts as 0 if the
    batch has none, as in the authors' code. `--sampling balanced` draws all of these groups alike, which the paper
    advises. Weights of classes have no effect on them.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        eta: step size of the weights, at least 0.
        divided: whether the loss is divided by the number of domains, as in DomainBed's published table and SWAD.
        separate_passes: whether every domain passes through the network on its own, as in DomainBed, so that batch
            norms that are not frozen see one domain at a time.
        groups: "domains" or "domains_and_classes".

    Attributes:
        q: the weights after the last step, (num_domains,) or (num_domains, classes).

    Raises:
        ValueError: an argument is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "eta": Hparam(0.01, log10_uniform(-3, -1), seed_name="groupdro_eta"),
        "divided": option(False, True, ("domainbed", "swad")),
        "separate_passes": option(False, True),
        "groups": Hparam("domains", later=True),
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
        groups: Groups = "domains",
    ) -> None:
        super().__init__(network, num_domains)
        if not 0 <= eta < math.inf:
            raise ValueError(f"Invalid eta value: {eta}; it must be at least 0")
        if groups not in get_args(Groups):
            raise ValueError(f"Invalid groups value: {groups}; it must be one of {', '.join(get_args(Groups))}")
        if groups == "domains_and_classes" and network.task != "classification":
            raise ValueError(f"groups {groups} are for classes, and the network is for {network.task}")
        self.eta, self.divided, self.separate_passes, self.groups = eta, divided, separate_passes, groups
        shape = (num_domains,) if groups == "domains" else (num_domains, network.classifier.out_features)
        self.register_buffer("q", torch.full(shape, 1 / math.prod(shape)))

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the weighted sum of the groups' losses."""
        logits = passed(self.network, self.predict, batches, self.separate_passes)
        if self.groups == "domains":
            losses = losses_by_domain(logits, batches, self.network.loss)
        else:
            losses = self._losses_by_class(logits, batches)
        raised = self.q.log() + self.eta * losses.detach()
        q = raised.flatten().softmax(0).view_as(raised)  # normalised without overflow
        self.carry("q", q)
        loss = (q * losses).sum()  # autocast would compute a matrix product in bfloat16
        return loss / len(batches) if self.divided else loss

    def _losses_by_class(self, logits: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Return the mean loss of each domain's images of each class, (domains, classes); 0 where there are none."""
        classes = self.q.shape[1]
        means = []
        for part, (_, labels) in zip(split_domains(logits, batches), batches, strict=True):
            losses = row_losses(part, labels)
            of_class = functional.one_hot(labels, classes).to(losses.dtype)
            means.append((of_class * losses[:, None]).sum(0) / of_class.sum(0).clamp_min(1))
        return torch.stack(means)


ALGORITHMS.register("groupdro", GroupDRO)
