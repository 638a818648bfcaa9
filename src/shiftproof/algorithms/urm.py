"""Uniform risk minimization (Krishnamachari et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, MakeClosure, OptimizerFactory
from shiftproof.algorithms.dann import first_pass
from shiftproof.algorithms.domain_loss import pooled, split_domains
from shiftproof.algorithms.extended_network import ExtendedNetwork
from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam, choice, log10_uniform, uniform
from shiftproof.models import Network

Activation = Literal["tanh", "relu"]

_WIDTH = 100


class BoundedNetwork(ExtendedNetwork):
    """A network with an activation of the features (after the dropout): tanh, or a rectifier.

    Which of them is a buffer, so that it is saved with the weights.

    Args:
        network: the network whose parts to use.
    """

    rectified: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.register_buffer("rectified", torch.zeros(()))  # a number, as averages of weights have no truth values

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (n, num_classes) of normalised images or other inputs."""
        outputs: Tensor = self.classifier(self.features(inputs))
        return outputs

    def features(self, inputs: Tensor) -> Tensor:
        """Return the activated features (n, feature_size)."""
        features = self.dropout(self.featurizer(inputs))
        return torch.where(self.rectified > 0, features.relu(), features.tanh())


class URM(Algorithm):
    r"""Uniform risk minimization, in its adversarial form (Krishnamachari, Ng and Foo, TMLR 2024).

    The paper is "Uniformly Distributed Feature Representations for Fair and Robust Learning" (openreview PgLbS5yp8n).

    The features pass through tanh, or through a rectifier. A discriminator :math:`D` learns to tell them from noise
    :math:`u`, uniform in :math:`[-1, 1)` or :math:`[0, 1)` in every feature, and the network to be mistaken for it:

    .. math:: L = CE + \lambda \cdot \overline{-\log D(z)}, \qquad
        L_D = \overline{-\log D(u)} + \lambda \cdot \overline{-\log (1 - D(z))}

    with means over the images of all domains; the domains play no part. As in the authors' code, which is DomainBed's,
    :math:`\lambda` is in both losses, and the network steps first, the discriminator then on the features of the
    network's first pass. It has 1 + ``hidden_layers`` hidden layers of 100 leaky rectifiers. The label smoothing of
    that code, which none of its searches uses, is left out.

    The reported loss of a step is the network's :math:`L`.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        adversary_weight: :math:`\lambda`, at least 0.
        hidden_layers: number of the discriminator's hidden layers after the first, at least 0.
        activation: "tanh" or "relu".
        lr_ratio: the discriminator's learning rate divided by the run's, above 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    reads_heads: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "adversary_weight": Hparam(0.1, uniform(0.0, 0.2), seed_name="urm_adv_lambda"),
        "hidden_layers": Hparam(1, choice(1, 2, 3), seed_name="urm_discriminator_hidden_layers"),
        "activation": Hparam("tanh", choice("tanh", "relu"), seed_name="urm_generator_output"),
        "lr_ratio": Hparam(
            1.0,
            log10_uniform(math.log10(0.02), math.log10(0.02) + 1.5),
            seed_name="urm_discriminator_lr",
            relative_to="optimizer.lr",
        ),
    }
    hparams_on: ClassVar[Mapping[str, Mapping[str, Hparam]]] = {
        "small_images": {
            "lr_ratio": Hparam(
                1.0, log10_uniform(-2.5, -0.5), seed_name="urm_discriminator_lr", relative_to="optimizer.lr"
            ),
        },
    }
    network: BoundedNetwork

    def __init__(
        self,
        network: Network,
        num_domains: int,
        adversary_weight: float = 0.1,
        hidden_layers: int = 1,
        activation: Activation = "tanh",
        lr_ratio: float = 1.0,
    ) -> None:
        if not 0 <= adversary_weight < math.inf:
            raise ValueError(f"Invalid adversary_weight value: {adversary_weight}; it must be at least 0")
        if type(hidden_layers) is not int or hidden_layers < 0:
            raise ValueError(f"Invalid hidden_layers value: {hidden_layers}; it must be a whole number, at least 0")
        if activation not in get_args(Activation):
            raise ValueError(f"Invalid activation value: {activation}; it must be one of tanh, relu")
        if not 0 < lr_ratio < math.inf:
            raise ValueError(f"Invalid lr_ratio value: {lr_ratio}; it must be above 0")
        super().__init__(network, num_domains)
        self.adversary_weight, self.lr_ratio = adversary_weight, lr_ratio
        self.lowest = 0.0 if activation == "relu" else -1.0
        self.network.rectified.fill_(float(activation == "relu"))
        self.discriminator = _discriminator(network.feature_size, hidden_layers)
        self._discriminating = False  # whether it is the discriminator's turn
        self._seen: list[list[Batch]] | None = None  # during a step: features of the network's passes

    @staticmethod
    def extend(network: Network) -> BoundedNetwork:
        """Return the network with an activation of the features."""
        return BoundedNetwork(network)

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the network's optimizer and the discriminator's."""
        self.optimizers = {
            "all": factory(p for p in self.network.parameters() if p.requires_grad),
            "discriminator": factory(self.discriminator.parameters(), name="discriminator", lr_ratio=self.lr_ratio),
        }

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Step the network, and then the discriminator; return the network's detached loss."""
        seen: list[list[Batch]] = []
        self._seen = seen
        loss = self._step("all", make_closure(batches))
        self._seen, self._discriminating = None, True
        try:
            self._step("discriminator", make_closure(first_pass(seen, len(batches[0][1])), annealed=False))
        finally:
            self._discriminating = False
        return loss

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the network's loss, whose gradient does not reach the discriminator."""
        images, labels = pooled(batches)
        features = self.network.features(images)
        if self._seen is not None:
            parts = split_domains(features.detach(), batches)
            self._seen.append([(part, labels) for part, (_, labels) in zip(parts, batches, strict=True)])
        weights = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        scores = functional_call(self.discriminator, weights, (features,))
        return self.network.loss(self.network.classifier(features), labels) + self.adversary_weight * _taken_for(
            scores, noise=True
        )

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the gradients of the network, or of the discriminator in its turn; return the detached loss."""
        loss = self.discriminator_loss(batches) if self._discriminating else self.objective(batches)
        loss.backward(create_graph=create_graph)  # type: ignore[no-untyped-call]
        return loss.detach()

    def discriminator_loss(self, encoded: Sequence[Batch]) -> Tensor:
        """Return the discriminator's loss.

        Args:
            encoded: batches with features (n, feature_size) in place of images.
        """
        features, _ = pooled(encoded)
        uniform_noise = torch.rand(features.shape, device="cpu").to(features, non_blocking=True)
        noise = self.lowest + (1 - self.lowest) * uniform_noise
        of_noise = _taken_for(self.discriminator(noise), noise=True)
        of_features = _taken_for(self.discriminator(features), noise=False)
        return of_noise + self.adversary_weight * of_features


def _discriminator(feature_size: int, hidden_layers: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(feature_size, _WIDTH), nn.LeakyReLU()]
    for _ in range(hidden_layers):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(_WIDTH, 1))


def _taken_for(scores: Tensor, *, noise: bool) -> Tensor:
    """Return the mean negative log-probability that what has the scores is noise, or that it is features."""
    return F.softplus(-scores if noise else scores).mean()


ALGORITHMS.register("urm", URM)
