"""Losses and gradients of single domains, and measures of how far the gradients agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from shiftproof.base.precise_sums import dot, norm
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.gradients.kinds import check_dense, check_real
from shiftproof.gradients.modes import frozen_statistics


class DomainGradient(NamedTuple):
    """The loss of one domain and its gradient.

    Attributes:
        loss: value of the loss.
        parts: the gradient of each parameter; None if the loss does not depend on it.
    """

    loss: float
    parts: tuple[Tensor | None, ...]


DomainLosses = Sequence[Callable[[], Tensor]]
"""One function per source domain, which evaluates the scalar loss of that domain at the current parameters."""

EvaluateDomain = Callable[[int], DomainGradient]
"""Returns the loss and the gradient of a domain, given its number."""


@contextmanager
def evaluated_domains(
    parameters: Sequence[Tensor], domain_losses: DomainLosses, seed: int, step: int
) -> Iterator[EvaluateDomain]:
    """Yield a function that evaluates the loss and the gradient of one domain, given its number.

    The model's random draws (dropout) depend only on (seed, step, domain), and every evaluation starts from the same
    buffers, so two evaluations of a domain at the same parameters agree bit for bit. On exit, buffers and torch's
    generators are back in their old state (see `frozen_statistics`).

    Raises:
        ValueError: there are no parameters, or one is complex.
        RuntimeError: a gradient turns out to be sparse on evaluation.
    """
    if not parameters:
        raise ValueError("no parameter requires a gradient")
    check_real(parameters)
    device = parameters[0].device

    def evaluate(domain: int) -> DomainGradient:
        seed_generators(torch_seed(seed, "domain loss", step, domain), device)
        with torch.enable_grad():
            loss = domain_losses[domain]()
        gradient = DomainGradient(float(loss.detach()), torch.autograd.grad(loss, parameters, allow_unused=True))
        check_dense(gradient.parts)
        restore_buffers()
        return gradient

    with torch.random.fork_rng([device] if device.type == "cuda" else []), frozen_statistics() as restore_buffers:
        yield evaluate


class Direction(NamedTuple):
    """A gradient as one vector.

    Attributes:
        vector: the flattened gradient (n,).
        length: its Euclidean norm.
    """

    vector: Tensor
    length: float


def direction(gradient: DomainGradient, parameters: Sequence[Tensor]) -> Direction:
    """Flatten a gradient into one vector; missing parts become zeros."""
    flat = torch.cat(
        [
            torch.zeros_like(p).flatten() if part is None else part.flatten()
            for p, part in zip(parameters, gradient.parts, strict=True)
        ]
    )
    return Direction(flat, norm(flat))


def cosine(a: Direction, b: Direction) -> float:
    """Return the cosine of two directions, summed in float64: 0 if one is zero, NaN if one is not finite."""
    product = float(dot(a.vector, b.vector))
    return product / (a.length * b.length) if a.length and b.length else product


def pairwise_cosines(directions: Sequence[Direction]) -> dict[tuple[int, int], float]:
    """Return the cosine of every pair of directions (i, j), i < j."""
    return {(i, j): cosine(directions[i], directions[j]) for i, j in combinations(range(len(directions)), 2)}


def domain_similarities(
    parameters: Iterable[Tensor], domain_losses: DomainLosses, *, seed: int = 0, step: int = 0
) -> tuple[float, float]:
    r"""Return the least and the mean cosine :math:`g_i \cdot g_j / (\lVert g_i \rVert \lVert g_j \rVert)` over pairs.

    :math:`g_i` is the flattened gradient of the loss of source domain ``i``. This costs a forward and a backward pass
    per domain, and changes no gradient, buffer or generator.

    Args:
        parameters: the parameters; only those that require a gradient count.
        domain_losses: functions that evaluate the losses of at least two source domains.
        seed: with ``step``, the key of the model's random draws.
        step: number of the step.

    Raises:
        ValueError: there is only one domain, no parameter requires a gradient, or one that does is complex.
        RuntimeError: a gradient is sparse.

    Examples:
        >>> import torch
        >>> from shiftproof.annealing import domain_similarities
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> losses = [lambda: weight[0] ** 2, lambda: weight[1] ** 2, lambda: weight[0] ** 2]
        >>> domain_similarities([weight], losses)  # the least of the pairs, and their mean
        (0.0, 0.3333333333333333)
    """
    parameters = [p for p in parameters if p.requires_grad]
    check_domains("the similarity of gradients", len(domain_losses))
    with evaluated_domains(parameters, domain_losses, seed, step) as evaluate:
        cosines = pairwise_cosines([direction(evaluate(i), parameters) for i in range(len(domain_losses))])
    return min(cosines.values()), math.fsum(cosines.values()) / len(cosines)


def check_domains(name: str, num_domains: int) -> None:
    """Check that there are at least two domains to compare.

    Raises:
        ValueError: there are fewer; the message begins with ``name``.
    """
    if num_domains < 2:
        raise ValueError(f"{name} compares the gradients of source domains: it needs at least two, not {num_domains}")
