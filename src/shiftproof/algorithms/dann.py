"""DANN and CDANN, which learn features from which a discriminator cannot tell the domain."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shiftproof.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    Closure,
    MakeClosure,
    OptimizerFactory,
    SingleDomainWarning,
)
from shiftproof.algorithms.domain_loss import domain_numbers, pooled, split_domains
from shiftproof.base.batch import Batch
from shiftproof.base.choices import Task
from shiftproof.base.hparams import REFERENCE_DIALECTS, Hparam, choice, log2_int, log10_uniform, option
from shiftproof.models import Network

Penalised = Literal["loss", "probabilities"]


class Discriminator(nn.Module):
    """A perceptron that predicts the domain from features.

    Args:
        feature_size: number of features.
        num_domains: number of logits.
        width: width of its hidden layers.
        depth: number of linear layers, at least 2.
        dropout: probability of dropping a hidden unit.
        num_classes: number of classes, to add a learned vector for the label to the features; None adds none.
    """

    def __init__(
        self, feature_size: int, num_domains: int, width: int, depth: int, dropout: float, num_classes: int | None
    ) -> None:
        super().__init__()
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, feature_size)
        layers: list[nn.Module] = []
        for inputs in (feature_size, *(width,) * (depth - 2)):
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_domains))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits (n, num_domains) of features (n, feature_size) with labels (n,)."""
        logits: Tensor = self.layers(features if self.embedding is None else features + self.embedding(labels))
        return logits


class DANN(Algorithm):
    r"""Domain-adversarial neural network (Ganin et al., JMLR 17(59), 2016, arXiv 1505.07818, equations 10 to 15).

    A discriminator :math:`D` minimises the cross-entropy :math:`L_D` of the domains; the network minimises
    :math:`CE - w L_D`. Both gradients of a step are taken at the same weights: the network steps first, and then the
    discriminator takes one or more steps on the features from the network's first pass, without a forward pass of its
    own. So every step trains the classifier, as in the paper.

    The weight is constant, as in DomainBed; the paper raises it from 0 over training. The features are taken after the
    dropout. DomainBed's code trains the classifier in only one of :math:`1 + d` steps and the discriminator in the
    others, as does ``alternate`` here. The paper has no gradient penalty. Here it affects only the discriminator, which
    it keeps smooth; in DomainBed it enters the network's loss too, negated, as it does here with
    ``penalised_network``: the network then gains by making the discriminator steep, for which we know no reason. The
    dialects of published code choose both.

    With one source domain there is nothing to discriminate: DANN is then ERM, and warns.

    The reported loss of a step is the cross-entropy of the classes, or of the domains if the step trains only the
    discriminator.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        penalty_weight: the weight :math:`w`, at least 0.
        weight_decay_d: the discriminator's weight decay, at least 0.
        d_steps: number :math:`d` of discriminator steps per step of the network, at least 1.
        grad_penalty: weight of the mean over images of :math:`\lVert \partial l_i / \partial z_i \rVert^2`, with
            :math:`l_i` the discriminator's loss of image :math:`i`; at least 0.
        beta1: decay of the first moment in both optimizers, if they have one, in [0, 1).
        beta2: the same for the second moment; 0.9 in DomainBed and all code built on it.
        mlp_width: width of the discriminator, at least 1.
        mlp_depth: number of its linear layers, at least 2.
        mlp_dropout: its dropout, in [0, 1).
        lr_ratio: the discriminator's learning rate divided by the run's, above 0. A search draws the rate from the
            range of the run's.
        alternate: whether each step trains either the discriminator or the network, as in DomainBed's published
            results.
        penalised_network: whether the gradient penalty is part of the loss :math:`L_D` that the network maximises.
        penalised: whose gradient the penalty takes: that of the "loss", or of the "probabilities", as in DomainBed's
            published table and in SWAD, where :math:`l_i` is the sum over all images :math:`j` of the batch of the
            probability that :math:`i` is of the domain of :math:`j`. With equal batches that sum is constant, and the
            penalty is zero but for rounding.

    Raises:
        ValueError: an argument is out of its range.
    """

    reads_heads: ClassVar[bool] = True
    draws_own_rates: ClassVar[bool] = True
    hparams: ClassVar[Mapping[str, Hparam]] = {
        "penalty_weight": Hparam(1.0, log10_uniform(-2, 2), seed_name="lambda"),
        "weight_decay_d": Hparam(0.0, log10_uniform(-6, -2)),
        "d_steps": Hparam(1, log2_int(0, 3), seed_name="d_steps_per_g_step"),
        "grad_penalty": Hparam(0.0, log10_uniform(-2, 1)),
        "beta1": Hparam(0.5, choice(0.0, 0.5)),
        "beta2": Hparam(0.9),
        "mlp_width": Hparam(256, log2_int(6, 10)),
        "mlp_depth": Hparam(3, choice(3, 4, 5)),
        "mlp_dropout": Hparam(0.0, choice(0.0, 0.1, 0.5)),
        "lr_ratio": Hparam(1.0, relative_to="optimizer.lr", seed_name="lr_d"),
        "alternate": Hparam(False, in_dialects=dict.fromkeys(REFERENCE_DIALECTS, True)),
        "penalised_network": option(False, True),
        "penalised": option("loss", "probabilities", ("domainbed", "swad")),
    }
    conditional: ClassVar[bool] = False
    discriminator_type: ClassVar[type[Discriminator]] = Discriminator

    def __init__(
        self,
        network: Network,
        num_domains: int,
        penalty_weight: float = 1.0,
        weight_decay_d: float = 0.0,
        d_steps: int = 1,
        grad_penalty: float = 0.0,
        beta1: float = 0.5,
        beta2: float = 0.9,
        mlp_width: int = 256,
        mlp_depth: int = 3,
        mlp_dropout: float = 0.0,
        lr_ratio: float = 1.0,
        alternate: bool = False,
        penalised_network: bool = False,
        penalised: Penalised = "loss",
    ) -> None:
        super().__init__(network, num_domains)
        for name, value in (
            ("penalty_weight", penalty_weight),
            ("weight_decay_d", weight_decay_d),
            ("grad_penalty", grad_penalty),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name} value: {value}; it must be at least 0")
        for name, count, least in (("d_steps", d_steps, 1), ("mlp_width", mlp_width, 1), ("mlp_depth", mlp_depth, 2)):
            if type(count) is not int or count < least:
                raise ValueError(f"Invalid {name} value: {count}; it must be a whole number, at least {least}")
        for name, value in (("beta1", beta1), ("beta2", beta2), ("mlp_dropout", mlp_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"Invalid {name} value: {value}; it must be in [0, 1)")
        if not 0 < lr_ratio < math.inf:
            raise ValueError(f"Invalid lr_ratio value: {lr_ratio}; it must be above 0")
        if penalised not in get_args(Penalised):
            raise ValueError(
                f"Invalid penalised value: {penalised}; it must be one of {', '.join(get_args(Penalised))}"
            )
        self.penalty_weight, self.grad_penalty = penalty_weight, grad_penalty
        self.penalised_network, self.penalised = penalised_network, penalised
        self.d_steps, self.alternate = d_steps, alternate
        self._betas = {"beta1": beta1, "beta2": beta2}
        self._discriminator_options = {"lr_ratio": lr_ratio, "weight_decay": weight_decay_d, **self._betas}
        classes = network.classifier.out_features if self.conditional else None
        self.discriminator = None
        if num_domains > 1:
            self.discriminator = self.discriminator_type(
                network.feature_size, num_domains, mlp_width, mlp_depth, mlp_dropout, classes
            )
        else:
            warnings.warn(f"{type(self).__name__} with one source domain is ERM", SingleDomainWarning, stacklevel=1)
        self._discriminating = False  # whether it is the discriminator's turn
        self._seen: list[list[Batch]] | None = None  # during a step: features of the network's passes

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the network's optimizer and the discriminator's."""
        if self.discriminator is None:
            super().build_optimizers(factory)
            return
        discriminator = set(self.discriminator.parameters())
        generator = [p for p in self.parameters() if p.requires_grad and p not in discriminator]
        self.optimizers = {
            "generator": factory(generator, name="generator", **self._betas),
            "discriminator": factory(
                self.discriminator.parameters(), name="discriminator", **self._discriminator_options
            ),
        }

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Step the network and the discriminator, and return the detached loss."""
        if self.discriminator is None:
            return super().update(batches, step, make_closure)
        if self.alternate and step % (1 + self.d_steps) < self.d_steps:
            return self._step("discriminator", make_closure(batches, annealed=False))
        if self.alternate:
            return self._step("generator", make_closure(batches))
        seen: list[list[Batch]] = []
        self._seen = seen
        loss = self._step("generator", make_closure(batches))
        self._seen = None
        closure = make_closure(first_pass(seen, len(batches[0][1])), annealed=False)
        for _ in range(self.d_steps):
            self._step("discriminator", closure)
        return loss

    def _step(self, name: str, closure: Closure) -> Tensor:
        self._discriminating = name == "discriminator"
        try:
            return super()._step(name, closure)
        finally:
            self._discriminating = False

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the network's loss, whose gradient does not reach the discriminator."""
        classification, discrimination = self._losses(self._encoded(batches))
        return classification - self.penalty_weight * discrimination

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave the gradients of the network, or of the discriminator in its turn; return the detached loss."""
        if self._discriminating:
            if self.alternate:
                with torch.no_grad():
                    batches = self._encoded(batches)
            loss = reported = self.discriminator_loss(batches)
        else:
            encoded = self._encoded(batches)
            reported, discrimination = self._losses(encoded)
            loss = reported - self.penalty_weight * discrimination
            if self._seen is not None:
                self._seen.append([(features.detach(), labels) for features, labels in encoded])
        loss.backward(create_graph=create_graph)  # type: ignore[no-untyped-call]
        return reported.detach()

    def discriminator_loss(self, encoded: Sequence[Batch]) -> Tensor:
        """Return the discriminator's loss, whose gradient does not reach the network.

        Args:
            encoded: batches with features (n, feature_size) in place of images.
        """
        assert self.discriminator is not None  # noqa: S101  # it trains only with several domains
        features, labels, domains = _pooled(encoded)
        features = features.detach().requires_grad_(self.grad_penalty > 0)
        return self._discrimination(self.discriminator(features, labels), features, labels, domains, self.grad_penalty)

    def _discrimination(
        self, logits: Tensor, features: Tensor, labels: Tensor, domains: Tensor, grad_penalty: float
    ) -> Tensor:
        """Return the loss of the discriminator's logits (n, domains), with the penalty."""
        losses = F.cross_entropy(logits, domains, reduction="none")
        loss = self._mean(losses, labels)
        if grad_penalty > 0:
            loud = losses if self.penalised == "loss" else logits.softmax(1)[:, domains]
            (gradient,) = torch.autograd.grad(loud.sum(), features, create_graph=True)
            loss = loss + grad_penalty * gradient.square().sum(1).mean()
        return loss

    def _encoded(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches with features in place of images, from one forward pass."""
        features = self.network.dropout(self.network.featurizer(torch.cat([images for images, _ in batches])))
        return [(part, labels) for part, (_, labels) in zip(split_domains(features, batches), batches, strict=True)]

    def _losses(self, encoded: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return the classifier's loss and the discriminator's, the latter with the discriminator's weights fixed."""
        features, labels, domains = _pooled(encoded)
        classification = self._classification(features, labels, domains)
        if self.discriminator is None:
            return classification, torch.zeros_like(classification)
        weights = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        grad_penalty = self.grad_penalty if self.penalised_network and features.requires_grad else 0.0
        logits = functional_call(self.discriminator, weights, (features, labels))
        return classification, self._discrimination(logits, features, labels, domains, grad_penalty)

    def _classification(self, features: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """Return the network's loss without the discriminator's."""
        return self.network.loss(self.network.classifier(features), labels)

    def _mean(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of the images' losses (n,)."""
        return losses.mean()


class CDANN(DANN):
    r"""Class-conditional domain-adversarial neural network, as in DomainBed.

    It differs from `DANN` in two ways. The discriminator knows the class: a learned vector for it is added to the
    features. And the discriminator's loss averages over each class's images first and then over the classes in the
    batch, so that it cannot tell domains apart by their shares of the classes.

    Li et al., "Deep Domain Generalization via Conditional Invariant Adversarial Networks", ECCV 2018, use one
    discriminator per class instead; the published tables are for the form here.

    Args:
        network: the network to train.
        num_domains: number of source domains.
        divided_by_largest_label: whether the sum over the classes is divided by the largest label of the batch plus 1
            rather than by their number, as in DomainBed: the two differ if a class is absent.
        *args: hyperparameters of `DANN`, in their order.
        **hparams: the same by their names.
    """

    accumulates: ClassVar[bool] = False
    conditional: ClassVar[bool] = True
    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    limits: ClassVar[str] = "its discriminator knows the class"
    hparams: ClassVar[Mapping[str, Hparam]] = {**DANN.hparams, "divided_by_largest_label": option(False, True)}

    def __init__(
        self, network: Network, num_domains: int, *args: Any, divided_by_largest_label: bool = False, **hparams: Any
    ) -> None:
        super().__init__(network, num_domains, *args, **hparams)
        self.divided_by_largest_label = divided_by_largest_label

    def _mean(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Average the images' losses (n,) within each class first, and then over the classes in the batch."""
        weights = 1 / (labels[:, None] == labels).sum(1, dtype=losses.dtype)
        return (weights * losses).sum() / (labels.max() + 1 if self.divided_by_largest_label else weights.sum())


def _pooled(encoded: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the domains' features and labels, and number each image's domain."""
    return *pooled(encoded), domain_numbers(encoded)


def first_pass(seen: Sequence[Sequence[Batch]], size: int) -> list[Batch]:
    """Return the features of the first pass, joining its parts; later passes are at other weights.

    Args:
        seen: the features of each part of each pass.
        size: number of images in the first domain's batch.
    """
    parts = seen[: size // len(seen[0][0][1])]
    return [
        (torch.cat([features for features, _ in domain]), torch.cat([labels for _, labels in domain]))
        for domain in zip(*parts, strict=True)
    ]


ALGORITHMS.register("dann", DANN)
ALGORITHMS.register("cdann", CDANN)
