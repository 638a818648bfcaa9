"""GENIE's step in torch's own operations: a for-loop, which serves as the readable reference, and foreach."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import threshold

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
    paper_terms,
    released_terms,
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
    terms = None
    if options.needs_sums:
        terms = [row_terms(row, options, m, v) for row, (m, v) in zip(rows, moments, strict=True)]

    def finish(spreads: Tensor | None) -> None:
        for i, (row, (m, v)) in enumerate(zip(rows, moments, strict=True)):
            # Held for all tensors only if sums are to be taken first: fresh memory takes as long as the arithmetic.
            term = row_terms(row, options, m, v) if terms is None else terms[i]
            update = term.mean * term.factor if options.precondition else term.mean
            uncertainty = 1 - term.certainty
            # Certain everywhere is the usual case: then nothing is drawn.
            if options.noise and (isinstance(row.step, Tensor) or (uncertainty > 0).any()):
                [normal] = draw_normals([row.place], options.seed, row.step, update.dtype, update.device)
                update = update + normal * _spread(term, spreads, i) * uncertainty * options.noise
            if options.threshold:
                [kept] = draw_masks([row.place], options.seed, row.step, options.threshold, update.device)
                update = _kept_only(update, kept)
                if options.kept_share != 1:
                    update = update / options.kept_share
            if options.decoupled_decay:
                update = update + row.param.to(update.dtype) * options.decoupled_decay
            row.param.sub_(update * options.lr)

    return Begun(None if terms is None else torch.stack(list(map(spread_sums, terms))), finish)


def _kept_only(update: Tensor, kept: Tensor) -> Tensor:
    """Return an update with zeros for what is not kept, also where that is not finite; it may be overwritten."""
    if type(update) is not Tensor or not update.is_cpu or update.requires_grad:
        return torch.where(kept, update, 0)
    # On a CPU, `where` takes some ten times as long as clearing all bits of the rest, because it branches at random.
    bits = torch.int32 if update.dtype == torch.float32 else torch.int64
    update.view(bits).bitwise_and_(kept.view(torch.int8).neg().to(bits))
    return update


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
        terms, doubtful = _foreach_paper_terms(ms, vs, corrections[0])
    elif options.form == "released":
        terms, doubtful = _foreach_released_terms(ms, vs, corrections[0], step, options.betas[0])
    else:
        terms, doubtful = _foreach_adamw_terms(ms, vs, corrections, options.betas[0], options.eps), []
    device, dtype = ms[0].device, ms[0].dtype

    def finish(spreads: Tensor | None) -> None:
        means = [term.mean for term in terms]
        updates = torch._foreach_mul(means, [term.factor for term in terms]) if options.precondition else means
        if options.noise and doubtful:
            uncertainties = {i: 1 - terms[i].certainty for i in doubtful}
            noisy = [i for i in doubtful if (uncertainties[i] > 0).any()]
            normals = draw_normals([rows[i].place for i in noisy], options.seed, step, dtype, device)
            for i, normal in zip(noisy, normals, strict=True):
                updates[i].add_(normal * _spread(terms[i], spreads, i) * uncertainties[i] * options.noise)
        if options.threshold:
            masks = draw_masks([row.place for row in rows], options.seed, step, options.threshold, device)
            updates = tuple(map(_kept_only, updates, masks))
            if options.kept_share != 1:
                torch._foreach_div_(updates, options.kept_share)
        params = [row.param for row in rows]
        if options.decoupled_decay:
            decays = torch._foreach_mul([p.to(dtype) for p in params], options.decoupled_decay)
            updates = torch._foreach_add(updates, decays)
        torch._foreach_mul_(updates, options.lr)
        torch._foreach_sub_(params, updates)

    if not options.needs_sums:
        return Begun(None, finish)
    sums = torch.ones(len(rows), 2, dtype=torch.float64, device=device)
    for i, (row, term) in enumerate(zip(rows, terms, strict=True)):
        if i in doubtful or row.shard is not None:  # otherwise there is no noise to scale
            sums[i] = spread_sums(term)
    return Begun(sums, finish)


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


def _foreach_paper_terms(ms: list[Tensor], vs: list[Tensor], correction: float) -> tuple[list[Terms], list[int]]:
    """Return the terms and the numbers of the doubtful tensors, in which certainty may be below 1."""
    squares = torch._foreach_mul(ms, ms)
    doubtful = _doubtful(torch._foreach_sub(vs, squares), math.inf)
    factors = torch._foreach_div(squares, [threshold(v, 0, math.inf) for v in vs])
    terms = _certain_terms(torch._foreach_div(ms, correction), factors)
    for i in doubtful:
        terms[i] = paper_terms(ms[i], vs[i], correction)
    return terms, doubtful


def _foreach_released_terms(
    ms: list[Tensor], vs: list[Tensor], correction: float, step: int, beta: float
) -> tuple[list[Terms], list[int]]:
    """Return the terms and the numbers of the doubtful tensors, in which certainty may be below 1."""
    rho = mean_variance_ratio(beta, correction)
    means = torch._foreach_div(ms, correction)
    squares = torch._foreach_mul(means, means)
    if step > 1 and rho < 1:
        variances = torch._foreach_div(vs, correction)
        torch._foreach_sub_(variances, squares)
        torch._foreach_div_(variances, 1 - rho)
    else:
        variances = tuple(map(torch.zeros_like, vs))
    for variance in variances:
        threshold(variance, 0, VARIANCE_FLOOR, inplace=True)
    doubtful = _doubtful(variances, LARGEST_INVERSE_VARIANCE)
    torch._foreach_mul_(variances, rho)
    for averaged in variances:
        threshold(averaged, 0, VARIANCE_FLOOR, inplace=True)
    torch._foreach_add_(squares, VARIANCE_FLOOR)
    terms = _certain_terms(means, torch._foreach_div(squares, torch._foreach_add(variances, squares)))
    for i in doubtful:
        terms[i] = released_terms(ms[i], vs[i], correction, step, beta)
    return terms, doubtful


def _doubtful(variances: Sequence[Tensor], largest_inverse: float) -> list[int]:
    """Return the numbers of the tensors in which certainty may be below 1.

    It usually is 1 everywhere, because the hyperbolic tangent rounds to 1 from about 9 on (19 in float64). The largest
    variance tells, doubled for a margin to where rounding decides.
    """
    inverse = 0.5 / torch.stack(torch._foreach_max(variances))
    certain = (inverse < 0) | (torch.tanh(inverse.clamp(max=largest_inverse)) == 1)
    return [i for i, known in enumerate(certain.tolist()) if not known]


def _certain_terms(means: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Terms]:
    one = torch.ones((), dtype=means[0].dtype, device=means[0].device)
    return [Terms(mean, factor, one.expand_as(mean), None) for mean, factor in zip(means, factors, strict=True)]


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
    return _certain_terms(means, factors)
