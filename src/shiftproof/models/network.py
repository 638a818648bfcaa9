"""A network: a featurizer, dropout and a linear classifier or regressor."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof.base.choices import Task
from shiftproof.base.field_error import FieldError
from shiftproof.models.normalisation import Normalisation
from shiftproof.models.tasks import Quantity, classifier_of, loss_of


class Network(nn.Module):
    """A classifier of normalised images or of other inputs, or a regressor.

    Args:
        featurizer: maps images (n, channels, height, width), or other inputs, to features (n, feature_size).
        feature_size: number of features.
        num_classes: number of outputs: logits, or 1 for a regression.
        normalisation: normalisation of the images that it expects; None for inputs that are no pictures.
        dropout: probability of dropping a feature, in [0, 1).
        freeze_batch_norm: keep the featurizer's batch norms at their stored statistics even in training, as in
            DomainBed's published results; their scales and shifts still train.
        image_shape: (channels, height, width) of its input, in pixels; None if nothing will read it.
        stages: names of the featurizer's modules whose outputs are its stages, the earliest first; empty to find them
            by their resolution.
        task: what the outputs are for.
        quantity: mean and standard deviation of a regression's targets, in whose unit its outputs are.
        class_vectors: given vectors (num_classes, feature_size) of the classes, for a `CosineClassifier`; None for a
            classifier that trains.

    Attributes:
        frozen: modules of the featurizer that stay in evaluation mode, because nothing in them is trained.
        loss: the mean loss of outputs and targets of the task.
    """

    def __init__(
        self,
        featurizer: nn.Module,
        feature_size: int,
        num_classes: int,
        normalisation: Normalisation | None,
        dropout: float = 0.0,
        freeze_batch_norm: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        stages: tuple[str, ...] = (),
        task: Task = "classification",
        quantity: Quantity | None = None,
        class_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise FieldError("model.dropout", f"Invalid dropout value: {dropout}; it must be in [0, 1)")
        self.featurizer = featurizer
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier_of(feature_size, num_classes, quantity, class_vectors)
        self.feature_size = feature_size
        self.normalisation = normalisation
        self.freeze_batch_norm = freeze_batch_norm
        self.image_shape = image_shape
        self.stages = stages
        self.task, self.quantity = task, quantity
        self.frozen: tuple[nn.Module, ...] = ()
        self.loss = loss_of(task, quantity)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules and batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        if self.freeze_batch_norm:
            for module in self.featurizer.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False  # not eval(), because timm's batch norms contain dropout and activation
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (n, num_classes) of normalised images (n, channels, height, width) or other inputs."""
        outputs: Tensor = self.classifier(self.dropout(self.featurizer(inputs)))
        return outputs
