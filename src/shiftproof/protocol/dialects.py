"""The dialects of the DomainBed protocol: papers have run different code under this one name.

``shiftproof`` is our own. ``domainbed`` follows the code behind the published table (commit 7df6f06),
``domainbed-head`` today's code (commit b93c22a), and ``swad`` the code of SWAD, on which MIRO, SAGM, GGA and GENIE
are built.

A dialect sets rules and numbers. It does not reproduce the reference's streams of random numbers: batches, crops and
initial weights are functions of our seeds, and the methods of a trial start from the same weights, whereas DomainBed
seeds every algorithm and setting separately. Crops are taken from images at the training size (see
`shiftproof.data`). In our own dialect algorithms follow their papers. In the others they do what the published code
does where that differs, by options of theirs (`shiftproof.base.hparams.option`), as far as that is no defect.

Sources: Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021 (arXiv 2007.01434); Cha et
al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021 (arXiv 2102.08604).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shiftproof.base.choices import Kind, Search
from shiftproof.base.registry import Registry

Draws = Literal["per_name", "in_order"]
Oracle = Literal["last", "best"]


@dataclass(frozen=True)
class Protocol:
    """The rules of one dialect.

    Attributes:
        start: the weights that its published results started from.
        updates: default number of updates.
        updates_domainnet: default number of updates on DomainNet.
        updates_from_scratch: default number on photographs without given weights, which take longer to learn; None
            for no difference.
        frequencies: default number of updates between evaluations on photographs, on DomainNet and on small images;
            None for a fifth of the updates.
        first_update: the number of the first update; an evaluation follows updates whose number is divisible by the
            frequency.
        evaluates_last: whether an evaluation always follows the last update.
        rounds_updates: whether the number of updates is rounded so that the last is evaluated.
        freeze_batch_norm: whether batch norms keep the statistics of given weights.
        zero_classifier: whether the classifier on given weights starts at zero rather than at random.
        augment_validation: whether held-out images of the sources are augmented as in training; photographs only.
        oracle: the checkpoint that the oracle takes: the last, or the one with the best accuracy on the target's
            held-out images, which looks at the target at every evaluation.
        highest_setting_wins_ties: whether ties go to the setting with the highest number rather than the lowest.
        search: the search that settings are of unless one is stated.
        draws: whether each hyperparameter draws from its own generator ("per_name") or all from one ("in_order").
        small_models: the models that square small images have unless one is named, by their side in pixels; images of
            another size have their data set's.
    """

    start: str
    updates: int = 5001
    updates_domainnet: int = 5001
    updates_from_scratch: int | None = None
    frequencies: tuple[int, int, int] | None = (300, 1000, 100)
    first_update: Literal[0, 1] = 0
    evaluates_last: bool = False
    rounds_updates: bool = False
    freeze_batch_norm: bool = True
    zero_classifier: bool = False
    augment_validation: bool = True
    oracle: Oracle = "last"
    highest_setting_wins_ties: bool = True
    search: Search = "protocol"
    draws: Draws = "in_order"
    small_models: Mapping[int, str] = field(default_factory=dict)

    def steps(self, dataset: str, kind: Kind, pretrained: bool) -> int:
        """Return the default number of updates.

        Args:
            dataset: name of the data set.
            kind: kind of its images.
            pretrained: whether training starts from given weights.
        """
        if self.updates_from_scratch and kind == "photographs" and not pretrained:
            return self.updates_from_scratch
        return self.updates_domainnet if dataset == "DomainNet" else self.updates

    def checkpoint_freq(self, dataset: str, kind: Kind, steps: int) -> int:
        """Return the default number of updates between evaluations.

        Args:
            dataset: name of the data set.
            kind: kind of its images.
            steps: number of updates in the run.
        """
        if self.frequencies is None:
            return max(1, steps // 5)
        large, domainnet, small = self.frequencies
        if kind == "small_images":
            return small
        return domainnet if dataset == "DomainNet" else large

    def evaluated(self, step: int, steps: int, freq: int) -> bool:
        """Return whether an evaluation follows update number ``step`` (from 1) of ``steps``."""
        return (step - 1 + self.first_update) % freq == 0 or (self.evaluates_last and step == steps)

    def last_evaluated(self, steps: int, freq: int) -> int:
        """Return the number (from 1) of the last of ``steps`` updates that an evaluation follows; 0 for none."""
        if self.evaluates_last:
            return steps
        return (steps - 1 + self.first_update) // freq * freq + 1 - self.first_update

    def evaluations(self, steps: int, freq: int) -> int:
        """Return how many evaluations a run of ``steps`` updates has."""
        last = steps - 1 + self.first_update
        return last // freq + 1 - self.first_update + (self.evaluates_last and last % freq != 0)

    def rounded(self, steps: int, freq: int) -> int:
        """Return how many of the ``steps`` updates asked for are trained: all, or those up to the last evaluation.

        SWAD's code trains one update beyond a multiple of ``freq``; here the number is rounded down, never up.
        """
        return self.last_evaluated(steps, freq) if self.rounds_updates else steps


OURS = "shiftproof"
"""The name of our own dialect, the default."""

PROTOCOLS: Registry[Protocol] = Registry("protocol")
"""The dialects by name."""

_TORCHVISION = "torchvision's ResNet-50, ImageNet-1k V1"
_SMALL_MODELS = {28: "mnist_cnn", 32: "wide_resnet_16_2"}

PROTOCOLS.register(
    OURS,
    Protocol(
        "as given",
        updates=300,
        updates_domainnet=300,
        updates_from_scratch=3000,
        frequencies=None,
        first_update=1,
        evaluates_last=True,
        zero_classifier=True,
        augment_validation=False,
        highest_setting_wins_ties=False,
        search="short",
        draws="per_name",
    ),
)
PROTOCOLS.register("domainbed", Protocol(_TORCHVISION, small_models=_SMALL_MODELS))
PROTOCOLS.register(
    "domainbed-head",
    Protocol(
        "timm's ResNet-50, resnet50.ram_in1k",
        evaluates_last=True,
        freeze_batch_norm=False,
        draws="per_name",
        small_models=_SMALL_MODELS,
    ),
)
PROTOCOLS.register(
    "swad",
    Protocol(
        _TORCHVISION,
        updates_domainnet=15001,
        frequencies=(200, 500, 100),
        rounds_updates=True,
        augment_validation=False,
        oracle="best",
        small_models=_SMALL_MODELS,
    ),
)
