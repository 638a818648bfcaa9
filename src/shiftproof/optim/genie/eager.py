"""GENIE's step in torch's own operations: a for-loop, which serves as the readable reference, and foreach."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import threshold

from shiftproof.base.sharding import PLAIN, Shard
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

_TILE = 2**18
"""Elements of a tensor that are stepped at a time on a CPU: temporaries of that size stay in its cache."""
_DRAWN_AT_ONCE = 2**22
"""Elements whose masks are drawn together."""


def arithmetic_dtype(moment: torch.dtype) -> torch.dtype:
    """Return the dtype in which a step computes, given the dtype of the moments."""
    return torch.float32 if moment in (torch.float16, torch.bfloat16) else moment


def begin_forloop(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows, one tensor at a time; if a row's step count is a tensor, read no value."""
    return _begin_in_parts(rows, options, lambda part, options: _begin_one(part.rows[0], options, part.masks), 0)


def _begin_one(row: Row, options: Options, masks: Sequence[Tensor]) -> Begun:
    """Begin the step of one row, and finish it unless noise acts whose scale is still to be summed up."""
    m, v = _update_moments(row, options)
    term = row_terms(row, options, m, v)

    def finish(spreads: Tensor | None) -> None:
        update = term.mean * term.factor if options.precondition else term.mean
        if noisy:
            spread = cast(Tensor, term.spread) if spreads is None else spreads[0].to(update.dtype)
            [normal] = draw_normals([row.place], options.seed, row.step, update.dtype, update.device)
            update = update + normal * spread * (1 - term.certainty) * options.noise
        if options.threshold:
            update = _kept_only(update, masks[0])
            if options.kept_share != 1:
                update = update / options.kept_share
        if options.decoupled_decay:
            update = torch.add(update, row.param.to(update.dtype), alpha=options.decoupled_decay)
        row.param.sub_(update * options.lr)

    # Certain everywhere is the usual case: then nothing is drawn.
    noisy = bool(options.noise) and (isinstance(row.step, Tensor) or bool((term.certainty < 1).any()))
    if options.needs_sums and noisy:
        return Begun(spread_sums(term)[None], finish)
    finish(None)
    return Begun(spread_sums(term)[None] if options.needs_sums else None, lambda spreads: None)


class _Part(NamedTuple):
    """Some tiles of a step's rows, the indices of the rows they are of, and their masks if elements are dropped."""

    owners: list[int]
    rows: list[Row]
    masks: Sequence[Tensor]


def _begin_in_parts(
    rows: Sequence[Row], options: Options, begin_part: Callable[[_Part, Options], Begun], least: float
) -> Begun:
    """Begin the step of some rows part by part, a part being `_tiles` of at least so many elements together."""
    parts: list[_Part] = []
    size: float = least
    for i, row in enumerate(rows):
        for tile in _tiles(row):
            if size >= least:
                parts.append(_Part([], [], []))
                size = 0
            parts[-1].owners.append(i)
            parts[-1].rows.append(tile)
            size += tile.param.numel()
    begun = [(part.owners, begin_part(part, options)) for part in _with_masks(parts, options)]

    def finish(spreads: Tensor | None) -> None:
        for owners, part in begun:
            part.finish(None if spreads is None else torch.stack([spreads[i] for i in owners]))

    if not options.needs_sums:
        return Begun(None, finish)
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device=rows[0].param.device)
    for owners, part in begun:
        for i, own in zip(owners, cast(Tensor, part.sums), strict=True):
            sums[i] += own.to(sums.device)
    return Begun(sums, finish)


def _with_masks(parts: Sequence[_Part], options: Options) -> Iterator[_Part]:
    """Yield parts with their masks, which are drawn for many at a time: small draws take as many operations."""
    if not options.threshold:
        yield from parts
        return
    bundles: list[list[_Part]] = []
    size: float = math.inf
    kind: tuple[Hashable, torch.device] | None = None
    for part in parts:
        step, device = part.rows[0].step, part.rows[0].param.device
        own_kind = (id(step) if isinstance(step, Tensor) else step, device)  # comparing tensors would read them
        if size >= _DRAWN_AT_ONCE or own_kind != kind:
            bundles.append([])
            size, kind = 0, own_kind
        bundles[-1].append(part)
        size += sum(row.param.numel() for row in part.rows)
    for bundle in bundles:
        rows = [row for part in bundle for row in part.rows]
        step, device = rows[0].step, rows[0].param.device
        masks = iter(draw_masks([row.place for row in rows], options.seed, step, options.threshold, device))
        yield from (part._replace(masks=[next(masks) for _ in part.rows]) for part in bundle)


def _tiles(row: Row) -> list[Row]:
    """Return a row in parts, as if they were shards of a flat tensor; in one where it is no large tensor of a CPU."""
    tensors = (row.param, row.grad, row.exp_avg, row.exp_avg_sq)
    if (
        row.param.numel() <= _TILE
        or row.shard is not None
        or torch.is_grad_enabled()
        or not all(t.is_cpu and type(t) in PLAIN and t.is_contiguous() for t in tensors)
    ):
        return [row]
    parts = zip(*(torch.split(t.view(-1), _TILE) for t in tensors), strict=True)
    whole = (row.param.numel(),)
    return [
        Row(p, grad, m, v, row.step, row.position, Shard(whole, (i * _TILE,), ()))
        for i, (p, grad, m, v) in enumerate(parts)
    ]


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


def begin_foreach(rows: Sequence[Row], options: Options) -> Begun:
    """Begin the step of some rows together, whose step counts must be numbers; equals `begin_forloop` bit for bit."""

    def key(row: Row) -> Hashable:
        return row.param.device, row.param.dtype, row.exp_avg.dtype, row.step

    def begin_batch(batch: list[Row], options: Options) -> Begun:
        least = _TILE if batch[0].param.is_cpu else math.inf
        return _begin_in_parts(batch, options, _begin_together, least)

    return begin_in_batches(rows, options, key, begin_batch)


def _begin_together(part: _Part, options: Options) -> Begun:
    """Begin the step of rows with equal device, dtypes of parameter and moments, and step count.

    It is finished for those on which no noise acts whose scale is still to be summed up.
    """
    rows = part.rows
    step = cast(int, rows[0].step)
    ms, vs = _foreach_moments(rows, options)
    corrections = cast(tuple[float, float], bias_corrections(options.betas, step, ms[0].dtype))
    doubtful: list[int] = []
    if options.form == "paper":
        terms, doubtful = _foreach_paper_terms(ms, vs, corrections[0])
    elif options.form == "released":
        terms, doubtful = _foreach_released_terms(ms, vs, corrections[0], step, options.betas[0])
    else:
        terms = _foreach_adamw_terms(ms, vs, corrections, options.betas[0], options.eps)
    noisy = [i for i in doubtful if options.noise and (terms[i].certainty < 1).any()]
    waiting = noisy if options.needs_sums else []
    moving = [i for i in range(len(rows)) if i not in waiting]
    _move(_chosen(part, moving), [terms[i] for i in moving], options, [i in noisy for i in moving])
    left, left_terms, dtype = _chosen(part, waiting), [terms[i] for i in waiting], ms[0].dtype

    def finish(spreads: Tensor | None) -> None:
        if waiting:
            own = cast(Tensor, spreads)[waiting].to(dtype)
            scaled = [term._replace(spread=spread) for term, spread in zip(left_terms, own, strict=True)]
            _move(left, scaled, options, [True] * len(waiting))

    return Begun(torch.stack(list(map(spread_sums, terms))) if options.needs_sums else None, finish)


def _chosen(part: _Part, indices: Sequence[int]) -> _Part:
    masks = [part.masks[i] for i in indices] if part.masks else []
    return _Part([part.owners[i] for i in indices], [part.rows[i] for i in indices], masks)


def _move(part: _Part, terms: list[Terms], options: Options, noisy: list[bool]) -> None:
    """Update the parameters of a part, given for each row whether noise acts on it, whose spread is in its terms."""
    rows = part.rows
    if not rows:
        return
    step, means = cast(int, rows[0].step), [term.mean for term in terms]
    device, dtype = means[0].device, means[0].dtype
    updates = torch._foreach_mul(means, [term.factor for term in terms]) if options.precondition else means
    acted = [i for i, acts in enumerate(noisy) if acts]
    normals = draw_normals([rows[i].place for i in acted], options.seed, step, dtype, device) if acted else []
    for i, normal in zip(acted, normals, strict=True):
        updates[i].add_(normal * cast(Tensor, terms[i].spread) * (1 - terms[i].certainty) * options.noise)
    if options.threshold:
        updates = tuple(map(_kept_only, updates, part.masks))
        if options.kept_share != 1:
            torch._foreach_div_(updates, options.kept_share)
    params = [row.param for row in rows]
    if options.decoupled_decay:
        torch._foreach_add_(updates, [p.to(dtype) for p in params], alpha=options.decoupled_decay)
    torch._foreach_mul_(updates, options.lr)
    torch._foreach_sub_(params, updates)


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
    inverse = 0.5 / torch.stack(torch._foreach_max(list(variances)))
    certain = (inverse < 0) | (torch.tanh(inverse.clamp(max=largest_inverse)) == 1)
    return [i for i, known in enumerate(certain.tolist()) if not known]


def _certain_terms(means: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Terms]:
    one = torch.ones((), dtype=means[0].dtype, device=means[0].device)
    return [Terms(mean, factor, one.expand_as(mean), None) for mean, factor in zip(means, factors, strict=True)]


def _foreach_adamw_terms(
    ms: list[Tensor], vs: list[Tensor], corrections: tuple[float, float], beta: float, eps: float
) -> list[Terms]:
    """The terms of `rule.adamw_terms`, where the reasons are."""
    means = torch._foreach_div(ms, corrections[0])
    squares = torch._foreach_mul(means, means)
    powers = torch._foreach_div(vs, corrections[1])
    for power in powers:
        threshold(power, 0, math.inf, inplace=True)
    totals = torch._foreach_sub(powers, squares)
    torch._foreach_clamp_min_(totals, torch.finfo(ms[0].dtype).tiny)
    torch._foreach_mul_(totals, mean_variance_ratio(beta, corrections[0]))
    torch._foreach_add_(totals, squares)
    torch._foreach_div_(squares, totals)
    torch._foreach_sqrt_(powers)
    torch._foreach_add_(powers, eps)
    torch._foreach_div_(means, powers)
    return _certain_terms(means, squares)
