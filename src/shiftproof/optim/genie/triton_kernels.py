"""The GPU kernels of GENIE's fused step. Importing this imports Triton; `fused_triton` launches them.

Each program of a kernel works on one chunk of one tensor. The list of chunks gives it as (row << 32) + number of the
chunk in the tensor; ``row`` indexes a table of int64 with one row per tensor, whose columns are named below. The
arithmetic follows `rule` in float32, and the random numbers follow `stream`.
"""
# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from shiftproof.optim import stream
from shiftproof.optim.genie import rule

_COLUMNS = tl.constexpr(18)
_PARAM, _GRAD, _EXP_AVG, _EXP_AVG_SQ = (tl.constexpr(i) for i in range(4))  # addresses
_STEP = tl.constexpr(4)  # an address, or 0
_INDEX, _POSITION = tl.constexpr(5), tl.constexpr(6)  # places in the step's sums and in the random stream
_NUMEL, _START, _SIZES, _STRIDES = (tl.constexpr(i) for i in (7, 8, 9, 12))  # the layout: 1, 1, 3 and 4 columns
_FIRST, _COUNT = tl.constexpr(16), tl.constexpr(17)  # first chunk and number of chunks

_MASK, _NOISE, _ROUNDING = (tl.constexpr(s) for s in (stream.MASK_STREAM, stream.NOISE_STREAM, stream.ROUNDING_STREAM))
_VARIANCE_FLOOR = tl.constexpr(rule.VARIANCE_FLOOR)
_LARGEST_INVERSE_VARIANCE = tl.constexpr(rule.LARGEST_INVERSE_VARIANCE)
_CERTAIN = tl.constexpr(13 * math.log(2))  # from here on, tanh rounds to 1 in float32
_TAU = tl.constexpr(2 * math.pi)


def element_type(dtype: torch.dtype) -> Any:
    """Return Triton's type for a torch dtype."""
    return getattr(tl, str(dtype).removeprefix("torch."))


@triton.jit(do_not_specialize=["seed", "step"])
def begin_kernel(
    table,
    chunks,
    flags,
    partials,
    found_inf,
    grad_scale,
    lr_at,
    lr,
    rescale,
    shrinkage,
    threshold,
    seed,
    step,
    correction1,
    correction2,
    log_beta1,
    log_beta2,
    ratio,
    eps,
    beta1,
    beta2,
    weight1,
    weight2,
    penalty,
    param_type: tl.constexpr,
    grad_type: tl.constexpr,
    moment_type: tl.constexpr,
    form: tl.constexpr,
    precondition: tl.constexpr,
    maximize: tl.constexpr,
    penalises: tl.constexpr,
    masks: tl.constexpr,
    noisy: tl.constexpr,
    capturable: tl.constexpr,
    run: tl.constexpr,
    block: tl.constexpr,
):
    """Update moving averages, sum the terms of the spreads, and update the parameters of chunks without noise."""
    row, chunk = _row_and_chunk(table, chunks)
    first, live, element = _elements(row, chunk, run, block)
    if found_inf is not None:
        live = _unless(tl.load(found_inf), live)
    step, correction1, rho = _count(row, step, correction1, log_beta1, ratio, capturable)
    draw = (seed, step, tl.load(row + _POSITION).to(tl.uint32), element)

    grads = _pointers(row, _GRAD, first, grad_type, block)
    g = tl.load(grads, mask=live, other=0).to(tl.float32)
    if grad_scale is not None:
        g = g / tl.load(grad_scale)
        tl.store(grads, g.to(grad_type), mask=live)
    params = _pointers(row, _PARAM, first, param_type, block)
    p = tl.load(params, mask=live, other=0).to(tl.float32)
    if maximize:
        g = -g
    if penalises:
        g = g + penalty * p
    ms = _pointers(row, _EXP_AVG, first, moment_type, block)
    vs = _pointers(row, _EXP_AVG_SQ, first, moment_type, block)
    m = beta1 * tl.load(ms, mask=live, other=0).to(tl.float32) + weight1 * g
    v = beta2 * tl.load(vs, mask=live, other=0).to(tl.float32) + weight2 * (g * g)
    if moment_type == tl.bfloat16:
        words = _words(_ROUNDING, 0, draw, run, block)
        m = _round(m, words & 0xFFFF)
        v = _round(v, words >> 16)
    tl.store(ms, m.to(moment_type), mask=live)
    tl.store(vs, v.to(moment_type), mask=live)

    if form == "adamw":
        correction2 = _count(row, step, correction2, log_beta2, ratio, capturable)[1]
        update = _adamw_update(m, v, correction1, correction2, rho, eps)
    else:
        mean, share, variance = _estimates(m, v, step, correction1, rho, form)
        flag = tl.max((live & (variance * _CERTAIN > 1.0)).to(tl.int32), axis=0)
        certainty = _certainty(variance) if flag != 0 else tl.full((block,), 1.0, tl.float32)
        program = tl.program_id(0)
        if partials is not None:
            count = tl.num_programs(0)
            tl.store(partials + program, _total(certainty * share * tl.abs(mean), live))
            tl.store(partials + count + program, _total(certainty, live))
        if noisy:
            tl.store(flags + program, flag)
            live = _unless(flag, live)
        update = mean * (certainty * share) if precondition else mean
    _move(
        params, p, update, live, lr_at, lr, rescale, shrinkage, threshold, draw, param_type, form, masks, run, block
    )


@triton.jit
def sum_kernel(table, partials, sums, chunk_count, block: tl.constexpr):
    """Add up each row's partial sums of its chunks, always in the same order."""
    row = table + tl.program_id(0) * _COLUMNS
    first = tl.load(row + _FIRST)
    end = first + tl.load(row + _COUNT)
    sums = sums + tl.load(row + _INDEX) * 2
    for k in tl.static_range(2):
        total = tl.zeros((block,), dtype=tl.float64)
        start = first
        while start < end:
            chunk = start + tl.arange(0, block)
            total += tl.load(partials + k * chunk_count + chunk, mask=chunk < end, other=0)
            start += block
        tl.store(sums + k, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["seed", "step"])
def finish_kernel(
    table,
    chunks,
    flags,
    spreads,
    lr_at,
    lr,
    rescale,
    shrinkage,
    threshold,
    seed,
    step,
    correction1,
    correction2,
    log_beta1,
    log_beta2,
    ratio,
    eps,
    noise,
    param_type: tl.constexpr,
    moment_type: tl.constexpr,
    form: tl.constexpr,
    precondition: tl.constexpr,
    masks: tl.constexpr,
    capturable: tl.constexpr,
    run: tl.constexpr,
    block: tl.constexpr,
):
    """Update the parameters of chunks with noise."""
    if tl.load(flags + tl.program_id(0)) == 0:
        return
    row, chunk = _row_and_chunk(table, chunks)
    first, live, element = _elements(row, chunk, run, block)
    step, correction1, rho = _count(row, step, correction1, log_beta1, ratio, capturable)
    draw = (seed, step, tl.load(row + _POSITION).to(tl.uint32), element)

    m = tl.load(_pointers(row, _EXP_AVG, first, moment_type, block), mask=live, other=0).to(tl.float32)
    v = tl.load(_pointers(row, _EXP_AVG_SQ, first, moment_type, block), mask=live, other=0).to(tl.float32)
    mean, share, variance = _estimates(m, v, step, correction1, rho, form)
    certainty = _certainty(variance)
    spread = tl.sqrt(variance) if form == "paper" else tl.load(spreads + tl.load(row + _INDEX)).to(tl.float32)
    update = mean * (certainty * share) if precondition else mean
    update += _normals(draw, run, block) * spread * (1 - certainty) * noise
    params = _pointers(row, _PARAM, first, param_type, block)
    p = tl.load(params, mask=live, other=0).to(tl.float32)
    _move(
        params, p, update, live, lr_at, lr, rescale, shrinkage, threshold, draw, param_type, form, masks, run, block
    )


@triton.jit
def _row_and_chunk(table, chunks):
    """Return the start of the program's row in the table, and the number of its chunk in the tensor."""
    entry = tl.load(chunks + tl.program_id(0))
    return table + (entry >> 32) * _COLUMNS, entry & 0x7FFFFFFF


@triton.jit
def _pointers(row, column: tl.constexpr, first, element_type: tl.constexpr, block: tl.constexpr):
    """Return the addresses of a chunk's elements in one of the row's tensors."""
    return tl.load(row + column).to(tl.pointer_type(element_type)) + first + tl.arange(0, block)


@triton.jit
def _elements(row, chunk, run: tl.constexpr, block: tl.constexpr):
    """Return a chunk's first offset in memory, a mask of the elements that exist, and their indices in the whole.

    If the tensor is a run of the whole, only the first index is returned, which is a multiple of 8.
    """
    start, place = tl.load(row + _START), tl.arange(0, block)
    if run:
        element = (start & -8) + chunk * block
        first = element - start
    else:
        first = chunk * block
        # Digits of first + place. Per-element numbers are 32-bit, because 64-bit division is slow.
        element, whole, part = start, first, place.to(tl.uint32)
        for i in tl.static_range(3):
            size = tl.load(row + _SIZES + i)
            digits = (whole % size).to(tl.uint32) + part
            whole, part = whole // size, digits // size.to(tl.uint32)
            element += (digits - part * size.to(tl.uint32)).to(tl.int64) * tl.load(row + _STRIDES + i)
        element += (whole + part) * tl.load(row + _STRIDES + 3)
    # The bounds fit 32 bits too: at most a block, and at least -7.
    last = tl.minimum(tl.load(row + _NUMEL) - first, block).to(tl.int32)
    return first, (place >= -tl.minimum(first, 0).to(tl.int32)) & (place < last), element


@triton.jit
def _unless(scalar, live):
    """Return a mask, cleared if a scalar is not 0, in a form that Triton's interpreter accepts for loads and stores."""
    return live.to(tl.int32) > (scalar != 0).to(tl.int32)


@triton.jit
def _count(row, step, correction, log_beta, ratio, capturable: tl.constexpr):
    """Return the steps taken, the bias correction, and the variance of the moving average over that of a gradient."""
    if capturable:  # otherwise the host has counted
        taken = tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32)))
        step = taken.to(tl.int64)
        correction = (1 - tl.exp(taken.to(tl.float64) * log_beta)).to(tl.float32)
    return step.to(tl.uint32), correction, ratio * (2 - correction) / correction


@triton.jit
def _estimates(m, v, step, correction, rho, form: tl.constexpr):
    """Return the mean gradient, the factor of `rule.Terms` without the certainty, and the variance of a gradient."""
    mean = m * (1 / correction)
    if form == "paper":
        square = m * m
        variance = tl.maximum(v - square, 0.0)
        share = tl.where(v > 0, square / v, 0.0)
    else:
        square = mean * mean
        known = (step > 1) & (rho < 1)
        variance = (v * (1 / correction) - square) * (1 / tl.where(known, 1 - rho, 1.0))
        variance = tl.where((variance > 0) & known, variance, _VARIANCE_FLOOR)
        averaged = variance * rho
        signal = square + _VARIANCE_FLOOR
        share = signal / (signal + tl.where(averaged > 0, averaged, _VARIANCE_FLOOR))
    return mean, share, variance


@triton.jit
def _adamw_update(m, v, correction1, correction2, rho, eps):
    """Return Adam's update by the share of the squared mean in what gradients of its size average to."""
    mean, power = m * (1 / correction1), v * (1 / correction2)
    square = mean * mean
    difference = power - square
    total = square + tl.where(difference > 0, difference, 0.0) * rho
    # Rounded correctly, so that the scale of the loss changes no bit; the faster divisions promise less.
    update = tl.div_rn(mean, tl.sqrt_rn(power) + eps) * tl.div_rn(square, total)
    return tl.where((power != 0) & (square != 0), update, 0.0)  # NaN is not 0, and stays


@triton.jit
def _certainty(variance):
    """Return tanh(1 / variance), for a variance of at least 0."""
    x = tl.minimum(1.0 / variance, _LARGEST_INVERSE_VARIANCE)
    y = x * x
    small = x * (1 - y * (1 / 3 - y * (2 / 15 - y * (17 / 315 - y * (62 / 2835)))))
    return tl.where(x < 0.25, small, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _total(values, live):
    return tl.sum(tl.where(live, values, 0.0).to(tl.float64), axis=0)


@triton.jit
def _move(
    params,
    p,
    update,
    live,
    lr_at,
    lr,
    rescale,
    shrinkage,
    threshold,
    draw,
    param_type: tl.constexpr,
    form: tl.constexpr,
    masks: tl.constexpr,
    run: tl.constexpr,
    block: tl.constexpr,
):
    """Apply the part of an update that the mask keeps."""
    if masks:
        words = _words(_MASK, 1, draw, run, block)
        if run:
            halfwords = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (block,))
        else:
            halfwords = tl.where((draw[3] & 1) != 0, words >> 16, words & 0xFFFF)
        update = tl.where(halfwords >= threshold, update, 0.0)
    if lr_at is not None:
        lr = tl.load(lr_at).to(tl.float32)
    change = update * (lr * rescale)
    if form == "adamw":
        change += p * (lr * shrinkage)
    tl.store(params, (p - change).to(param_type), mask=live)


@triton.jit
def _words(number: tl.constexpr, shift: tl.constexpr, draw, run: tl.constexpr, block: tl.constexpr):
    """Draw a word for every element from a stream; in a run, one for every 2 ** shift elements to share."""
    if run:
        a, b, c, d = _draw(number, (draw[3] >> (2 + shift)) + tl.arange(0, block >> (2 + shift)), draw)
        words = _interleave(a, b, c, d, block >> shift)
    else:
        a, b, c, d = _draw(number, draw[3] >> (2 + shift), draw)
        place = draw[3] >> shift
        words = tl.where((place & 2) != 0, tl.where((place & 1) != 0, d, c), tl.where((place & 1) != 0, b, a))
    return words


@triton.jit
def _normals(draw, run: tl.constexpr, block: tl.constexpr):
    """Draw a normal number for every element."""
    if run:
        a, b, c, d = _draw(_NOISE, (draw[3] >> 2) + tl.arange(0, block >> 2), draw)
        a, b = _box_muller(a, b)
        c, d = _box_muller(c, d)
        normals = _interleave(a, b, c, d, block)
    else:
        a, b, c, d = _draw(_NOISE, draw[3] >> 2, draw)
        upper = (draw[3] & 2) != 0
        even, odd = _box_muller(tl.where(upper, c, a), tl.where(upper, d, b))
        normals = tl.where((draw[3] & 1) != 0, odd, even)
    return normals


@triton.jit
def _draw(number: tl.constexpr, counter, draw):
    """Draw the four words of each of a stream's blocks."""
    high = ((counter >> 32) & 0x0FFFFFFF) | (number << 28)
    return tl.philox(draw[0], counter.to(tl.uint32), high.to(tl.uint32), draw[2], draw[1])


@triton.jit
def _box_muller(first, second):
    radius = tl.sqrt(-2 * tl.log(_uniform(first)))
    angle = _uniform(second) * _TAU
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _uniform(word):
    return ((word >> 9).to(tl.float32) + 0.5) * (1 / 8388608)


@triton.jit
def _interleave(a, b, c, d, size: tl.constexpr):
    """Return a[0], b[0], c[0], d[0], a[1], ..., as a block of ``size``."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (size,))


@triton.jit
def _round(x, random):
    """Add 16 random bits below bfloat16's last bit and truncate; leave NaN and infinities as they are."""
    bits = x.to(tl.uint32, bitcast=True)
    cut = ((bits + random) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where((bits & 0x7F800000) != 0x7F800000, cut, x)
