"""Marginal transfer learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm
from shiftproof.algorithms.domain_loss import mean_domain_loss, passed, split_domains
from shiftproof.algorithms.extended_network import ExtendedNetwork
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, option
from shiftproof.models import Network


class MarginalTransferNetwork(ExtendedNetwork):
    """A network whose classifier also sees an embedding of the image's domain: the mean of the domain's features.

    A linear classifier of the concatenated features and embedding is the sum of one classifier of each. The embedding's
    starts at zero, so that the network starts out equal to the given one.

    Args:
        network: the network whose parts to use.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.embedding_classifier = nn.Linear(network.feature_size, network.classifier.out_features, bias=False)
        nn.init.zeros_(self.embedding_classifier.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised images of one domain, with their own mean features as embedding."""
        features = self.featurizer(images)
        return self.classify(features, features.mean(0))

    def classify(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits (n, classes).

        Args:
            features: features of the images (n, feature_size).
            embeddings: embedding of each image's domain (n, feature_size), or of one domain for all (feature_size,).
        """
        shift: Tensor = self.embedding_classifier(embeddings)
        if self.quantity is not None:  # in the unit of the other summand
            shift = shift * self.quantity.std
        logits: Tensor = self.classifier(self.dropout(features)) + shift
        return logits


class MTL(Algorithm):
    r"""Marginal transfer learning (Blanchard et al., JMLR 2021, arXiv 1711.07910), with a network as in DomainBed.

    Besides the features, the classifier sees an embedding :math:`\mu` of the domain. The loss is the mean of the
    domains' cross-entropies. In training, :math:`\mu_e` is a moving average of the mean features of a domain's batches,

    .. math:: \mu_e \leftarrow \text{ema} \cdot \bar{z}_e + (1 - \text{ema}) \, \mu_e,

    with gradients through the current mean :math:`\bar{z}_e`, which is also the first value. In evaluation it is the
    mean of the batch's features, so a prediction depends on the other images in the batch. The paper instead embeds the
    whole sample, with kernels. DomainBed's code overwrites the embedding with noise, and sums the losses instead of
    averaging them.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        ema: weight of the current batch in the moving average, in (0, 1]; at 1 there is no memory.
        separate_passes: whether every domain passes through the network on its own, as in DomainBed, so that batch
            norms that are not frozen see one domain at a time.

    Raises:
        ValueError: ``ema`` is out of its range.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {
        "ema": Hparam(0.99, choice(0.5, 0.9, 0.99, 1.0), seed_name="mtl_ema"),
        "separate_passes": option(False, True),
    }
    accumulates: ClassVar[bool] = False
    transductive: ClassVar[bool] = True
    network: MarginalTransferNetwork
    embeddings: Tensor

    def __init__(self, network: Network, num_domains: int, ema: float = 0.99, separate_passes: bool = False) -> None:
        if not 0 < ema <= 1:
            raise ValueError(f"Invalid ema value: {ema}; it must be in (0, 1]")
        super().__init__(network, num_domains)
        self.ema, self.separate_passes = ema, separate_passes
        self.register_buffer("embeddings", torch.zeros(num_domains, network.feature_size))

    @staticmethod
    def extend(network: Network) -> MarginalTransferNetwork:
        """Return the network with a classifier of embeddings added."""
        return MarginalTransferNetwork(network)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss of all batches."""
        featurizer = self.network.featurizer
        features = passed(featurizer, featurizer, batches, self.separate_passes)
        means = torch.stack([part.mean(0, dtype=self.embeddings.dtype) for part in split_domains(features, batches)])
        seen = self.embeddings.any(1, keepdim=True)  # a domain's embedding is zero before its first batch
        embeddings = torch.where(seen, self.embeddings.lerp(means, self.ema), means)
        self.carry("embeddings", embeddings)
        every = torch.cat([e.expand(len(labels), -1) for e, (_, labels) in zip(embeddings, batches, strict=True)])
        return mean_domain_loss(self.network.classify(features, every), batches, self.network.loss)


ALGORITHMS.register("mtl", MTL)
