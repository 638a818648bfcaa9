"""Base of networks to which an algorithm adds parts."""

from __future__ import annotations

from shiftproof.models import Network


class ExtendedNetwork(Network):
    """Base of networks that are built from the parts of another.

    Args:
        network: the network whose parts to use.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(
            network.featurizer,
            network.feature_size,
            network.classifier.out_features,
            network.normalisation,
            network.dropout.p,
            network.freeze_batch_norm,
            network.image_shape,
            network.stages,
            network.task,
            network.quantity,
        )
        self.classifier = network.classifier
        self.loss = network.loss
        self.frozen = network.frozen
        self.train(network.training)
