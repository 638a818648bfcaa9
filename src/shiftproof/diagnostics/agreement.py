"""Gradient agreement: cosines between the source domains' gradients, layer by layer and over all parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

from torch import Tensor, nn

from shiftproof.base.drawing import COLUMN, STYLE, line_style
from shiftproof.base.precise_sums import dot
from shiftproof.diagnostics.mean_loss import trained_weights
from shiftproof.gradients import check_domains, evaluated_domains, evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cosines:
    """Cosines of the angles between the domains' gradients.

    Attributes:
        pairs: cosine of each pair of domains (i, j), i < j; NaN if either gradient is zero or not finite.
    """

    pairs: dict[tuple[int, int], float]

    @property
    def least(self) -> float:
        """The least of the cosines that are not NaN; NaN if all are."""
        return min(self._defined, default=math.nan)

    @property
    def mean(self) -> float:
        """The mean of the cosines that are not NaN; NaN if all are."""
        return math.fsum(self._defined) / len(self._defined) if self._defined else math.nan

    @property
    def _defined(self) -> list[float]:
        return [cosine for cosine in self.pairs.values() if not math.isnan(cosine)]


@dataclass(frozen=True)
class GradientAgreement:
    """How far the gradients of domains agree.

    Attributes:
        overall: cosines of the gradients of all parameters together.
        layers: cosines of the gradients of each module's own parameters, by module name, in the order of the model;
            parameters that belong directly to the model appear under their own names.
    """

    HEADER = ("layer", "first", "second", "cosine")
    OVERALL = "all layers"

    overall: Cosines
    layers: dict[str, Cosines]

    @property
    def least(self) -> float:
        """The least cosine over all parameters."""
        return self.overall.least

    @property
    def mean(self) -> float:
        """The mean cosine over all parameters."""
        return self.overall.mean

    def rows(self) -> list[tuple[str, int, int, float]]:
        """Return all cosines, one row per layer and pair of domains, with columns as in `HEADER`."""
        return [
            (name, *pair, cosine)
            for name, cosines in {self.OVERALL: self.overall, **self.layers}.items()
            for pair, cosine in cosines.pairs.items()
        ]

    def plot(self) -> Figure:
        """Draw the least and the mean cosine of all layers together, and below them those of each layer."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        drawn = {self.OVERALL: self.overall, **self.layers}
        places = range(len(drawn))
        least, mean = [c.least for c in drawn.values()], [c.mean for c in drawn.values()]
        with rc_context(STYLE):
            figure = Figure(figsize=(COLUMN, 1.1 + 0.14 * len(drawn)), layout="constrained")
            figure.suptitle("Agreement of the domains' gradients")
            axes = figure.subplots()
            axes.axvline(0, color="#999999", linewidth=0.8)
            axes.axhline(0.5, color="#999999", linewidth=0.8)
            axes.hlines(places, least, mean, color="#bbbbbb", linewidth=1.2)
            for index, (values, label, marker) in enumerate(
                [(mean, "mean of the pairs", "o"), (least, "least pair", "D")]
            ):
                axes.plot(values, places, marker, color=line_style(index).color, markersize=3.5, label=label)
            axes.set_yticks(places, list(drawn), fontsize=6.5)
            axes.set_ylim(len(drawn) - 0.5, -0.5)
            axes.set_xlabel("cosine of domain gradients")
            figure.legend(loc="outside upper center", ncols=2)
            return figure


def gradient_agreement(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]
) -> GradientAgreement:
    """Measure how far the gradients of the domains' losses agree at the model's current parameters.

    The model is evaluated in evaluation mode. Parameters, ``.grad``, buffers, generators and the modes of modules do
    not change. This costs a forward and a backward pass per domain.

    Args:
        model: the model, whose parameters that require a gradient count.
        loss: maps outputs and targets to a scalar loss.
        batches: inputs (n, ...) and targets (n, ...) of each domain.

    Raises:
        ValueError: there are fewer than two domains, or no parameter requires a gradient.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import gradient_agreement
        >>> model = torch.nn.Linear(2, 1)
        >>> batch = torch.randn(8, 2), torch.randn(8, 1)
        >>> agreement = gradient_agreement(model, torch.nn.functional.mse_loss, [batch, batch])
        >>> round(agreement.overall.pairs[0, 1], 6)  # of a domain and itself
        1.0
    """
    check_domains("gradient agreement", len(batches))
    parameters = trained_weights(model)

    def domain_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(model(inputs), targets)

    losses = [partial(domain_loss, *batch) for batch in batches]
    with evaluation_mode(model), evaluated_domains(list(parameters.values()), losses, seed=0, step=0) as evaluate:
        gradients = [evaluate(domain).parts for domain in range(len(batches))]
    return agreement_of(list(parameters), gradients)


def agreement_of(names: Sequence[str], gradients: Sequence[Sequence[Tensor | None]]) -> GradientAgreement:
    """Measure how far given gradients agree.

    Args:
        names: names of the parameters, as in `torch.nn.Module.named_parameters`.
        gradients: for each domain, the gradient of every parameter; None if its loss does not depend on the parameter.

    Raises:
        ValueError: there are fewer than two domains, or a domain does not have one gradient per name.
    """
    check_domains("gradient agreement", len(gradients))
    for domain, parts in enumerate(gradients):
        if len(parts) != len(names):
            raise ValueError(f"domain {domain} has {len(parts)} gradients for {len(names)} parameters")
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(name.rpartition(".")[0] or name, []).append(index)
    pairs = list(combinations_with_replacement(range(len(gradients)), 2))
    products = [{(i, j): _product(parts[i], parts[j]) for i, j in pairs} for parts in zip(*gradients, strict=True)]

    def cosines(some: Sequence[dict[tuple[int, int], float]]) -> Cosines:
        return _cosines({pair: sum(by_pair[pair] for by_pair in some) for pair in pairs})

    return GradientAgreement(
        cosines(products), {layer: cosines([products[i] for i in some]) for layer, some in indices.items()}
    )


def _product(a: Tensor | None, b: Tensor | None) -> float:
    return 0.0 if a is None or b is None else float(dot(a, b))


def _cosines(products: Mapping[tuple[int, int], float]) -> Cosines:
    """Return the cosines of vectors whose scalar products (i, j), i <= j, are given."""
    lengths = {i: math.sqrt(product) for (i, j), product in products.items() if i == j}
    return Cosines(
        {
            (i, j): product / (lengths[i] * lengths[j]) if 0 < lengths[i] * lengths[j] < math.inf else math.nan
            for (i, j), product in products.items()
            if i != j
        }
    )
