"""The update rules, of GENIE's two forms and of GENIEAdamW, element by element from a parameter's moving averages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.nn.functional import threshold

from shiftproof.base.sharding import Shard
from shiftproof.optim.stream import MASK_LEVELS, Place, mask_threshold

Form = Literal["paper", "released"]
FORMS: tuple[Form, ...] = ("paper", "released")
DEFAULT_LR: dict[Form, float] = {"paper": 0.1, "released": 0.015}
Rule = Literal["paper", "released", "adamw"]
"""What a step follows: a form of GENIE, or GENIEAdamW."""

# The released code's constants, in units of the squared gradient.
VARIANCE_FLOOR = 1e-8
LARGEST_INVERSE_VARIANCE = 10.0


class Options(NamedTuple):
    """The options of a step, under the names that they have in `GENIE` and `GENIEAdamW`.

    Attributes:
        betas: decay of the moving averages of the gradient and of its square; GENIE has one for both.
        weight_decay: an L2 penalty in GENIE, decoupled in GENIEAdamW.
        form: the rule.
        grad_scale: what the gradients are multiplied by; None for 1. Only the Triton implementation is given one.
        found_inf: not 0 where a gradient is not finite and nothing is to be updated; likewise.
    """

    lr: float | Tensor
    betas: tuple[float, float]
    eps: float
    dropout: float
    noise: float
    precondition: bool
    weight_decay: float
    form: Rule
    seed: int
    maximize: bool
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    @property
    def threshold(self) -> int:
        """The dropout in units of 1 / 65536."""
        return mask_threshold(self.dropout)

    @property
    def kept_share(self) -> float:
        """What the elements that the mask keeps are divided by: their expected share, but 1 in the paper's form."""
        return 1.0 if self.form == "paper" else 1 - self.threshold / MASK_LEVELS

    @property
    def penalty(self) -> float:
        """The weight decay that is added to the gradient."""
        return 0.0 if self.form == "adamw" else self.weight_decay

    @property
    def decoupled_decay(self) -> float:
        """The weight decay that is added to the update, whatever the mask."""
        return self.weight_decay if self.form == "adamw" else 0.0

    @property
    def needs_sums(self) -> bool:
        """Whether a step needs sums over whole tensors, for the scale of the noise."""
        return self.form == "released" and self.noise != 0


class Row(NamedTuple):
    """One parameter of a step, as local tensors.

    Attributes:
        param: updated in place.
        grad: its gradient, real and not sparse.
        exp_avg: moving average of the gradient, updated in place.
        exp_avg_sq: moving average of its square, updated in place.
        step: steps taken, this one included: a number, or a tensor that the host does not read.
        position: position of the parameter in the random stream.
        shard: where the local tensors lie in the whole; None if they are the whole.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int | Tensor
    position: int
    shard: Shard | None

    @property
    def place(self) -> Place:
        """The row's place in the random stream."""
        return Place(tuple(self.param.shape), self.position, self.shard)


class Begun(NamedTuple):
    """A step after its first half: moving averages are updated, but sums over whole tensors are still to be taken.

    Attributes:
        sums: the rows' `spread_sums` over their local parts, float64, shape (rows, 2); None if none are needed.
        finish: updates the parameters, given the rows' spreads, float64, shape (rows,), or None.
    """

    sums: Tensor | None
    finish: Callable[[Tensor | None], None]


def begin_in_batches(
    rows: Sequence[Row],
    options: Options,
    key: Callable[[Row], Hashable],
    begin_batch: Callable[[list[Row], Options], Begun],
) -> Begun:
    """Begin the step of some rows in batches of equal keys."""
    batches: dict[Hashable, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        batches[key(row)].append(i)
    begun = [(indices, begin_batch([rows[i] for i in indices], options)) for indices in batches.values()]
    if len(begun) == 1:
        return begun[0][1]

    def finish(spreads: Tensor | None) -> None:
        for indices, batch in begun:
            batch.finish(None if spreads is None else spreads[indices])

    if not options.needs_sums:
        return Begun(None, finish)
    sums = torch.empty(len(rows), 2, dtype=torch.float64, device=rows[0].param.device)
    for indices, batch in begun:
        sums[indices] = cast(Tensor, batch.sums).to(sums.device)
    return Begun(sums, finish)


class Terms(NamedTuple):
    """The terms of a tensor's update.

    Attributes:
        mean: the bias-corrected mean gradient; in GENIEAdamW divided by the root mean square, which is Adam's update.
        factor: the preconditioner, in [0, 1]; the update is mean times factor.
        certainty: one minus the weight of the noise, in [0, 1].
        spread: standard deviation of the noise, per element; None if it is one scalar per tensor, which is then the
            ratio of the two `spread_sums`.
    """

    mean: Tensor
    factor: Tensor
    certainty: Tensor
    spread: Tensor | None


@overload
def mean_variance_ratio(beta: float, correction: float) -> float: ...


@overload
def mean_variance_ratio(beta: float, correction: float | Tensor) -> float | Tensor: ...


def mean_variance_ratio(beta: float, correction: float | Tensor) -> float | Tensor:
    """Return the variance of the moving average divided by the variance of one gradient (Balles and Hennig, eq. 10)."""
    return (1 - beta) * (2 - correction) / ((1 + beta) * correction)


def paper_terms(m: Tensor, v: Tensor, correction: float | Tensor) -> Terms:
    """Return the terms of form "paper" (Algorithm 1 of the paper)."""
    square = m * m
    # Not above 0 by rounding, under constant gradients; then there is no noise, as with any small variance.
    variance = threshold(v - square, 0, VARIANCE_FLOOR)
    certainty = torch.tanh(1 / variance)
    factor = certainty * square / threshold(v, 0, math.inf)  # 0 where v = 0
    return Terms(m / correction, factor, certainty, variance.sqrt())


def released_terms(m: Tensor, v: Tensor, correction: float | Tensor, step: int | Tensor, beta: float) -> Terms:
    """Return the terms of form "released" (the authors' code).

    Args:
        m: moving average of the gradient.
        v: moving average of its square.
        correction: 1 - beta ** step.
        step: steps taken, this one included.
        beta: decay of the averages.
    """
    mean = m / correction
    square = mean * mean
    rho = mean_variance_ratio(beta, correction)
    # At step 1 rho is 1 and the variance x / 0, which rounding would decide: it is defined as the floor.
    if isinstance(step, Tensor):
        known = (step > 1) & (rho < 1)
        rest = torch.where(known, 1 - rho, 1)
        variance = torch.where(known, (v / correction - square) / rest, 0)
    elif step > 1 and rho < 1:
        variance = (v / correction - square) / (1 - rho)
    else:
        variance = torch.zeros_like(v)
    variance = threshold(variance, 0, VARIANCE_FLOOR)
    averaged = threshold(variance * rho, 0, VARIANCE_FLOOR)
    certainty = torch.tanh((1 / variance).clamp(max=LARGEST_INVERSE_VARIANCE))
    signal = square + VARIANCE_FLOOR
    return Terms(mean, certainty * signal / (signal + averaged), certainty, None)


def adamw_terms(
    m: Tensor, v: Tensor, corrections: tuple[float | Tensor, float | Tensor], beta: float, eps: float
) -> Terms:
    """Return the terms of `GENIEAdamW`: Adam's update, and the share of the mean in what the gradients average to.

    Args:
        m: moving average of the gradient.
        v: moving average of its square.
        corrections: 1 - beta ** step of either average.
        beta: decay of the first average.
        eps: added to the root of the second.
    """
    mean = m / corrections[0]
    square = mean * mean
    power = threshold(v / corrections[1], 0, math.inf)  # infinite where it is 0, so that factor and update are 0
    variance = (power - square).clamp(min=torch.finfo(m.dtype).tiny)  # not 0, or a mean of 0 would give 0 / 0
    factor = square / (square + variance * mean_variance_ratio(beta, corrections[0]))
    certain = torch.ones((), dtype=m.dtype, device=m.device).expand_as(mean)
    return Terms(mean / (power.sqrt() + eps), factor, certain, None)


def row_terms(row: Row, options: Options, m: Tensor, v: Tensor) -> Terms:
    """Return the terms of a row from its moving averages after the step, in the precision of the arithmetic."""
    corrections = bias_corrections(options.betas, row.step, m.dtype)
    if options.form == "paper":
        return paper_terms(m, v, corrections[0])
    if options.form == "released":
        return released_terms(m, v, corrections[0], row.step, options.betas[0])
    return adamw_terms(m, v, corrections, options.betas[0], options.eps)


def bias_corrections(
    betas: tuple[float, float], step: int | Tensor, dtype: torch.dtype
) -> tuple[float | Tensor, float | Tensor]:
    """Return the `bias_correction` of both averages."""
    return bias_correction(betas[0], step, dtype), bias_correction(betas[1], step, dtype)


@overload
def bias_correction(beta: float, step: int, dtype: torch.dtype) -> float: ...


@overload
def bias_correction(beta: float, step: int | Tensor, dtype: torch.dtype) -> float | Tensor: ...


def bias_correction(beta: float, step: int | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Return 1 - beta ** step, computed in float64."""
    if isinstance(step, Tensor):
        correction: Tensor = 1 - beta ** step.to(torch.float64)
        return correction.to(dtype)
    return 1 - float(beta**step)


def spread_sums(terms: Terms) -> Tensor:
    """Return two sums over a tensor whose ratio is the spread of its noise, in float64, shape (2,).

    The first is over factor times abs(mean), the second over certainty.
    """
    return torch.stack([part.sum(dtype=torch.float64) for part in (terms.factor * terms.mean.abs(), terms.certainty)])
