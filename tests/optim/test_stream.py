"""The optimizers' random numbers against Philox4x32-10 in plain Python."""

import math

import pytest
import torch

from shiftproof.base.sharding import Shard
from shiftproof.optim.stream import Place, draw_masks, draw_normals, draw_rounding_words, draw_signs

CPU = torch.device("cpu")
SEED = 0xFEDCBA9876543210
STEP = 2**32 - 3
THRESHOLD = 26214
MASK, NOISE, ROUNDING, SIGNS = range(4)
# The third takes several passes over blocks; the last has elements whose blocks need the second word of the counter.
PLACES = [
    Place((3, 7), 2),
    Place((), 2**31),
    Place((2**19 + 3,), 5),
    Place((2, 3), 4, Shard((9, 11), (5, 7), ())),
    Place((40,), 1, Shard((2**40,), (2**36 - 20,), ())),
]


def philox(counter):
    """The four words of Philox4x32-10 with the key ``SEED``."""
    c0, c1, c2, c3 = counter
    k0, k1 = SEED % 2**32, SEED >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def words_and_offset(stream, per_block, position, element):
    block, offset = divmod(element, per_block)
    return philox((block % 2**32, block >> 32 | stream << 28, position, STEP)), offset


def kept(position, element):
    words, offset = words_and_offset(MASK, 8, position, element)
    return (words[offset // 2] >> 16 * (offset % 2)) % 2**16 >= THRESHOLD


def normal(position, element):
    words, offset = words_and_offset(NOISE, 4, position, element)
    first, second = (((word >> 9) + 0.5) / 2**23 for word in words[offset // 2 * 2 :][:2])
    wave = math.sin if offset % 2 else math.cos
    return math.sqrt(-2 * math.log(first)) * wave(2 * math.pi * second)


def rounding_word(position, element):
    words, offset = words_and_offset(ROUNDING, 4, position, element)
    return words[offset]


def sign(position, element):
    words, offset = words_and_offset(SIGNS, 128, position, element)
    return 1 if words[offset // 32] >> offset % 32 & 1 else -1


def indices(place):
    """The index in the whole tensor of each element of a place, in logical order."""
    local = torch.unravel_index(torch.arange(math.prod(place.shape)), place.shape) if place.shape else []
    shape, offset = (place.shape, [0] * len(local)) if place.shard is None else place.shard[:2]
    whole = [0] * math.prod(place.shape)
    for axis, size, first in zip(local, shape, offset, strict=True):
        whole = [index * size + first + value for index, value in zip(whole, axis.tolist(), strict=True)]
    return whole


@pytest.mark.parametrize("step", [STEP, torch.tensor(STEP)], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda step: draw_masks(PLACES, SEED, step, THRESHOLD, CPU), kept),
        (lambda step: draw_normals(PLACES, SEED, step, torch.float64, CPU), normal),
        (lambda step: draw_rounding_words(PLACES, SEED, step, CPU), rounding_word),
        (lambda step: draw_signs(PLACES, SEED, step, torch.float32, CPU), sign),
    ],
    ids=["masks", "normals", "rounding words", "signs"],
)
def test_draws_are_philox(draw, expected, step):
    for drawn, place in zip(draw(step), PLACES, strict=True):
        assert drawn.shape == place.shape
        pairs = list(zip(drawn.flatten().tolist(), indices(place), strict=True))
        for value, element in pairs[:40] + pairs[40:-40:997] + pairs[40:][-40:]:
            assert value == pytest.approx(expected(place.position, element), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("threshold", [0, 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1])
def test_masks_keep_what_is_not_below_the_threshold(threshold):
    [mask] = draw_masks([Place((2**17,), 0)], SEED, STEP, threshold, CPU)
    values = [philox((block, 0, 0, STEP)) for block in range(2**9)]
    halfwords = [half for words in values for word in words for half in (word % 2**16, word >> 16)]
    assert mask.dtype == torch.bool
    assert mask[: 2**12].tolist() == [half >= threshold for half in halfwords]
    assert mask.double().mean().item() == pytest.approx(1 - threshold / 2**16, abs=0.01)


def test_nothing_is_drawn_for_no_elements():
    assert draw_masks([], SEED, STEP, THRESHOLD, CPU) == []
    [mask], [normals] = (
        draw_masks([Place((0, 3), 0)], SEED, STEP, THRESHOLD, CPU),
        draw_normals([Place((0, 3), 0)], SEED, STEP, torch.float32, CPU),
    )
    assert mask.shape == normals.shape == (0, 3)
