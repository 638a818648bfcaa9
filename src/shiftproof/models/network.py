"""A network: a featurizer, dropout and a linear classifier."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof.base.field_error import FieldError
from shiftproof.models.normalisation import Normalisation


class Network(nn.Module):
    """A classifier of normalised images.

    Args:
        featurizer: maps images (n, channels, height, width) to features (n, feature_size).
        feature_size: number of features.
        num_classes: number of logits.
        normalisation: normalisation of the images that it expects.
        dropout: probability of dropping a feature, in [0, 1).
        freeze_batch_norm: keep the featurizer's batch norms at their stored statistics even in training, as in
            DomainBed's published results; their scales and shifts still train.
        image_shape: (channels, height, width) of its input, in pixels; None if nothing will read it.
        stages: names of the featurizer's modules whose outputs are its stages, the earliest first; empty to find them
            by their resolution.
    """

    def __init__(
        self,
        featurizer: nn.Module,
        feature_size: int,
        num_classes: int,
        normalisation: Normalisation,
        dropout: float = 0.0,
        freeze_batch_norm: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        stages: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise FieldError("model.dropout", f"Invalid dropout value: {dropout}; it must be in [0, 1)")
        self.featurizer = featurizer
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(feature_size, num_classes)
        self.feature_size = feature_size
        self.normalisation = normalisation
        self.freeze_batch_norm = freeze_batch_norm
        self.image_shape = image_shape
        self.stages = stages
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.featurizer.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False  # not eval(), because timm's batch norms contain dropout and activation
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, num_classes) of normalised images (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.dropout(self.featurizer(images)))
        return logits
