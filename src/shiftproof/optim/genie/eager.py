"""GENIE's step in torch's own operations: a for-loop, which serves as the readable reference, and foreach."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor

from shiftproof.optim.genie.rule import (
    LARGEST_INVERSE_VARIANCE,
    VARIANCE_FLOOR,
    Begun,
    Options,
    Row,
    Terms,
    begin_in_batches,
    bias_corrections,
    mean_variance_ratio,
    row_terms,
    spread_sums,
)
from shiftproof.optim.stream import draw_masks, draw_normals, draw_rounding_words


def arithmetic_dtype(moment: torch.dtype) -> torch.dtype:
    """Return the dtype in which a step computes, given the dtype of the moments."""
    return torch.float32 if moment in (torch.float16, torch.bfloat16) else moment


def begin_forloop(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows, one tensor at a time; if a row's step count is a tensor, read no value."""
    moments = [_update_moments(row, options) for row in rows]
    terms = [row_terms(row, options, m, v) for row, (m, v) in zip(rows, moments, strict=True)]

    def finish(spreads: Tensor | None) -> None:
        for i, (row, term) in enumerate(zip(rows, terms, strict=True)):
            update = term.mean * term.factor if options.precondition else term.mean
            uncertainty = 1 - term.certainty
            # Certain everywhere is the usual case: then nothing is drawn.
            if options.noise and (isinstance(row.step, Tensor) or uncertainty.any()):
                [normal] = draw_normals([row.place], options.seed, row.step, update.dtype, update.device)
                update = update + normal * _spread(term, spreads, i) * uncertainty * options.noise
            if options.threshold:
                [kept] = draw_masks([row.place], options.seed, row.step, options.threshold, update.device)
                update = torch.where(kept, update, 0)  # also where it is not finite
                if options.kept_share != 1:
                    update = update / options.kept_share
            if options.decoupled_decay:
                update = update + row.param.to(update.dtype) * options.decoupled_decay
            row.param.sub_(update * options.lr)

    return Begun(_sums(terms, options), finish)


def _update_moments(row: Row, options: Options) -> tuple[Tensor, Tensor]:
    """Update a row's moving averages; return them in the precision of the arithmetic."""
    m, v = row.exp_avg, row.exp_avg_sq
    dtype = arithmetic_dtype(m.dtype)
    g = row.grad.to(dtype)
    if options.maximize:
        g = -g
    if options.penalty:
        g = g + options.penalty * row.param.to(dtype)
    beta1, beta2 = options.betas
    if m.dtype == dtype:
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # A recorded step keeps what it computed with; the next writes over the averages.
        return (m.clone(), v.clone()) if m.requires_grad else (m, v)
    exact_m = m.to(dtype).mul_(beta1).add_(g, alpha=1 - beta1)
    exact_v = v.to(dtype).mul_(beta2).addcmul_(g, g, value=1 - beta2)
    [rounded] = _round_moments([row], [exact_m], [exact_v], options.seed)
    return rounded


def _round_moments(
    rows: Sequence[Row], ms: Sequence[Tensor], vs: Sequence[Tensor], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Store moving averages in bfloat16 with unbiased stochastic rounding, and return the rounded values.

    The step continues with the rounded values, so that its effect can be recomputed from the state.
    """
    words = draw_rounding_words([row.place for row in rows], seed, rows[0].step, ms[0].device)
    rounded = []
    for row, m, v, word in zip(rows, ms, vs, words, strict=True):
        rounded.append((_round_stochastically(m, word & 0xFFFF), _round_stochastically(v, word >> 16)))
        row.exp_avg.copy_(rounded[-1][0])
        row.exp_avg_sq.copy_(rounded[-1][1])
    return rounded


def _round_stochastically(values: Tensor, random: Tensor) -> Tensor:
    """Add 16 random bits below bfloat16's last bit and truncate; leave NaN and infinities as they are."""
    bits = values.contiguous().view(torch.int32).to(torch.int64) + random
    cut = (bits & ~0xFFFF).to(torch.int32).view(torch.float32)
    return torch.where(values.isfinite(), cut, values)


def _sums(terms: Sequence[Terms], options: Options) -> Tensor | None:
    return torch.stack(list(map(spread_sums, terms))) if options.needs_sums else None


def _spread(term: Terms, spreads: Tensor | None, index: int) -> Tensor:
    """Return the spread of the noise, per element or for the tensor."""
    if term.spread is not None:
        return term.spread
    return cast(Tensor, spreads)[index].to(term.mean.dtype)


def begin_foreach(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows together, whose step counts must be numbers; equals `begin_forloop` bit for bit."""

    def key(row: Row) -> Hashable:
        return row.param.device, row.param.dtype, row.exp_avg.dtype, row.step

    return begin_in_batches(rows, options, key, _begin_batch)


def _begin_batch(rows: list[Row], options: Options) -> Begun:
    """Begin the step of rows with equal device, dtypes of parameter and moments, and step count."""
    step = cast(int, rows[0].step)
    ms, vs = _foreach_moments(rows, options)
    corrections = cast(tuple[float, float], bias_corrections(options.betas, step, ms[0].dtype))
    if options.form == "paper":
        terms = _foreach_paper_terms(ms, vs, corrections[0])
    elif options.form == "released":
        terms = _foreach_released_terms(ms, vs, corrections[0], step, options.betas[0])
    else:
        terms = _foreach_adamw_terms(ms, vs, corrections, options.betas[0], options.eps)
    device, dtype = ms[0].device, ms[0].dtype

    def finish(spreads: Tensor | None) -> None:
        means = [term.mean for term in terms]
        updates = torch._foreach_mul(means, [term.factor for term in terms]) if options.precondition else means
        if options.noise:
            uncertainties = torch._foreach_neg([term.certainty for term in terms])
            torch._foreach_add_(uncertainties, 1)
            largest = torch.stack(torch._foreach_max(uncertainties)).tolist()
            noisy = [i for i, value in enumerate(largest) if value != 0]
            if noisy:
                normals = draw_normals([rows[i].place for i in noisy], options.seed, step, dtype, device)
                for i, normal in zip(noisy, normals, strict=True):
                    updates[i].add_(normal * _spread(terms[i], spreads, i) * uncertainties[i] * options.noise)
        if options.threshold:
            masks = draw_masks([row.place for row in rows], options.seed, step, options.threshold, device)
            updates = tuple(torch.where(mask, update, 0) for mask, update in zip(masks, updates, strict=True))
            if options.kept_share != 1:
                torch._foreach_div_(updates, options.kept_share)
        params = [row.param for row in rows]
        if options.decoupled_decay:
            decays = torch._foreach_mul([p.to(dtype) for p in params], options.decoupled_decay)
            updates = torch._foreach_add(updates, decays)
        torch._foreach_mul_(updates, options.lr)
        torch._foreach_sub_(params, updates)

    return Begun(_sums(terms, options), finish)


def _foreach_moments(rows: list[Row], options: Options) -> tuple[list[Tensor], list[Tensor]]:
    dtype = arithmetic_dtype(rows[0].exp_avg.dtype)
    gs: list[Tensor] | tuple[Tensor, ...] = [row.grad.to(dtype) for row in rows]
    if options.maximize:
        gs = torch._foreach_neg(gs)
    if options.penalty:
        gs = torch._foreach_add(gs, torch._foreach_mul([row.param.to(dtype) for row in rows], options.penalty))
    ms, vs = [row.exp_avg.to(dtype) for row in rows], [row.exp_avg_sq.to(dtype) for row in rows]  # mostly no copies
    beta1, beta2 = options.betas
    torch._foreach_mul_(ms, beta1)
    torch._foreach_add_(ms, gs, alpha=1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, gs, gs, 1 - beta2)
    if rows[0].exp_avg.dtype == dtype:
        return ms, vs
    rounded = _round_moments(rows, ms, vs, options.seed)
    return [m for m, _ in rounded], [v for _, v in rounded]


def _foreach_paper_terms(ms: list[Tensor], vs: list[Tensor], correction: float) -> list[Terms]:
    squares = torch._foreach_mul(ms, ms)
    variances = torch._foreach_sub(vs, squares)
    torch._foreach_clamp_min_(variances, 0)
    certainties = torch._foreach_reciprocal(variances)
    torch._foreach_tanh_(certainties)
    factors = torch._foreach_div(torch._foreach_mul(certainties, squares), vs)
    factors = tuple(torch.where(v > 0, factor, 0) for v, factor in zip(vs, factors, strict=True))
    spreads = torch._foreach_sqrt(variances)
    means = torch._foreach_div(ms, correction)
    return [Terms(*term) for term in zip(means, factors, certainties, spreads, strict=True)]


def _foreach_released_terms(
    ms: list[Tensor], vs: list[Tensor], correction: float, step: int, beta: float
) -> list[Terms]:
    rho = mean_variance_ratio(beta, correction)
    known = step > 1 and rho < 1
    means = torch._foreach_div(ms, correction)
    squares = torch._foreach_mul(means, means)
    variances = torch._foreach_div(vs, correction)
    torch._foreach_sub_(variances, squares)
    torch._foreach_div_(variances, 1 - rho if known else 1.0)
    variances = tuple(torch.where((t > 0) & known, t, VARIANCE_FLOOR) for t in variances)
    averages = torch._foreach_mul(variances, rho)
    averages = tuple(torch.where(t > 0, t, VARIANCE_FLOOR) for t in averages)
    certainties = torch._foreach_reciprocal(variances)
    torch._foreach_clamp_max_(certainties, LARGEST_INVERSE_VARIANCE)
    torch._foreach_tanh_(certainties)
    torch._foreach_add_(squares, VARIANCE_FLOOR)
    factors = torch._foreach_mul(certainties, squares)
    torch._foreach_div_(factors, torch._foreach_add(squares, averages))
    return [Terms(*term, None) for term in zip(means, factors, certainties, strict=True)]


def _foreach_adamw_terms(
    ms: list[Tensor], vs: list[Tensor], corrections: tuple[float, float], beta: float, eps: float
) -> list[Terms]:
    means, powers = torch._foreach_div(ms, corrections[0]), torch._foreach_div(vs, corrections[1])
    squares = torch._foreach_mul(means, means)
    totals = torch._foreach_sub(powers, squares)
    torch._foreach_clamp_min_(totals, 0)
    torch._foreach_mul_(totals, mean_variance_ratio(beta, corrections[0]))
    torch._foreach_add_(totals, squares)
    factors = torch._foreach_div(squares, totals)
    dead = [(power == 0) | (square == 0) for power, square in zip(powers, squares, strict=True)]
    torch._foreach_sqrt_(powers)
    torch._foreach_add_(powers, eps)
    torch._foreach_div_(means, powers)
    for mean, factor, where in zip(means, factors, dead, strict=True):
        mean.masked_fill_(where, 0)
        factor.masked_fill_(where, 0)
    one = torch.ones((), dtype=ms[0].dtype, device=ms[0].device)
    return [Terms(mean, factor, one.expand_as(mean), None) for mean, factor in zip(means, factors, strict=True)]
