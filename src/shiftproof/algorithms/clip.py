"""Zero-shot classification and CLIPood: features of pictures and given vectors of the classes, compared by cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, MakeClosure, OptimizerFactory
from shiftproof.algorithms.domain_loss import pooled
from shiftproof.algorithms.erm import ERM
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import Hparam
from shiftproof.models import CosineClassifier, Network


class ZeroShot(ERM):
    """Predicts the class whose given vector has the greatest cosine with the features; nothing is fitted or trained.

    It takes no optimizer. The vectors are described in docs/how_to/class_vectors.md.

    Source: Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021 (arXiv
    2103.00020), section 3.1.
    """

    needs_class_vectors: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "it compares features with vectors of classes"
    stepped: ClassVar[bool] = False
    single_device: ClassVar[str | None] = "it takes no steps to share"

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build none."""

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Return the loss, and leave the weights as they are."""
        with torch.no_grad():
            return self.objective(batches)


class CLIPood(Algorithm):
    r"""CLIPood (Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023, arXiv 2302.00864).

    The loss is the mean over the images of all domains of the margin metric softmax

    .. math:: -\log \frac{e^{s \cos(z, v_y)}}
        {e^{s \cos(z, v_y)} + \sum_{c \ne y} e^{s (\cos(z, v_c) + \lambda (1 - \cos(v_y, v_c)))}}

    where :math:`z` are the image's features, :math:`y` its class, :math:`v_c` the given vectors of the classes, which
    stay as they are, and :math:`s` is 100. The less another class is like the image's own, the larger the margin by
    which its logit must be lower. Predictions have no margin. At :math:`\lambda = 0` this is ERM.

    The authors' code (commit 538dd3b) subtracts :math:`\lambda v_y` from the features at length 1, which is the same,
    and trains with AdamW, its learning rate falling along a cosine, from 5e-6 (OfficeHome and DomainNet: 1e-5), at
    weight decay 0.1. The paper's other half, the Beta moving average of the weights, is the averaging ``bma``.

    Args:
        network: the network to train, with a `CosineClassifier`.
        num_domains: number of source domains.
        margin: weight :math:`\lambda` of the margin, at least 0.

    Raises:
        ValueError: the margin is below 0, or the network has no vectors of classes.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {"margin": Hparam(0.3)}
    takes_class_vectors: ClassVar[bool] = True
    needs_class_vectors: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "it compares features with vectors of classes"
    reads_heads: ClassVar[bool] = True

    def __init__(self, network: Network, num_domains: int, *, margin: float = 0.3) -> None:
        super().__init__(network, num_domains)
        if not margin >= 0:
            raise ValueError(f"Invalid margin value: {margin}; it must be at least 0")
        if not isinstance(network.classifier, CosineClassifier):
            raise ValueError("CLIPood is for networks with given vectors of the classes")  # noqa: TRY004
        self.margin, self._scale = margin, network.classifier.scale

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches in one forward pass."""
        images, labels = pooled(batches)
        vectors = self.network.classifier.weight
        margins = self.margin * (1 - F.linear(vectors[labels], vectors))
        return self.network.loss(self.predict(images) + self._scale * margins, labels)


ALGORITHMS.register("zero_shot", ZeroShot)
ALGORITHMS.register("clipood", CLIPood)
