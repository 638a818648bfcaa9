"""Large tensors are stepped in tiles where there is no kernel; no number depends on it, nor on how shards are drawn."""

import pytest
import torch

from shiftproof.base.sharding import Shard
from shiftproof.optim import GENIE, GENIEAdamW, stream
from shiftproof.optim.genie import eager
from shiftproof.optim.stream import Place, draw_masks, draw_normals, draw_rounding_words, draw_signs

SEED = 0x0123456789ABCDEF
SHAPES = [(3000,), (40, 50, 3), (128,), ()]
BUILDS = {
    "paper": lambda params, **options: GENIE(params, lr=0.1, **options),
    "released": lambda params, **options: GENIE(params, lr=0.1, form="released", **options),
    "adamw": lambda params, **options: GENIEAdamW(params, lr=0.1, dropout=0.4, weight_decay=0.1, **options),
}


def _trained(form, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator) for shape in SHAPES]
    optimizer = BUILDS[form](params, fused=False, seed=SEED, **options)
    for step in range(4):
        for i, p in enumerate(params):
            # noise acts on some tensors and on a part of others
            size = 3.0 if i == 1 else torch.where(torch.arange(p.numel()).view(p.shape) < 700, 3.0, 0.01)
            p.grad = size * (torch.randn(p.shape, generator=generator) + 0.1 * step)
        optimizer.step()
    states = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
    return [*params, *states]


@pytest.mark.parametrize("moment_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("form", BUILDS)
def test_tiles_change_no_number(form, foreach, moment_dtype, monkeypatch):
    whole = _trained(form, foreach=foreach, moment_dtype=moment_dtype)
    monkeypatch.setattr(eager, "_TILE", 512)
    for one, other in zip(whole, _trained(form, foreach=foreach, moment_dtype=moment_dtype), strict=True):
        if form == "released":  # whose noise is scaled by sums over the tensor, in another order
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(one, other)


def test_large_tensors_are_tiled_and_others_are_not(monkeypatch):
    monkeypatch.setattr(eager, "_TILE", 512)
    tensors = [torch.zeros(40, 50) for _ in range(4)]
    row = eager.Row(*tensors, 1, 3, None)
    with torch.no_grad():
        tiles = eager._tiles(row)
        assert [tile.param.numel() for tile in tiles] == [512, 512, 512, 464]
        assert [tile.shard.offset for tile in tiles] == [(0,), (512,), (1024,), (1536,)]
        assert tiles[1].param.data_ptr() == tensors[0].data_ptr() + 4 * 512
        transposed = row._replace(param=torch.zeros(50, 40).t())
        assert eager._tiles(transposed) == [transposed]
        shard = row._replace(shard=Shard((80, 50), (40, 0), ()))
        assert eager._tiles(shard) == [shard]
        small = row._replace(**{name: torch.zeros(512) for name in ("param", "grad", "exp_avg", "exp_avg_sq")})
        assert eager._tiles(small) == [small]
    with torch.enable_grad():  # a step that is recorded
        assert eager._tiles(row) == [row]


DRAWS = {
    "mask": lambda place: draw_masks([place], SEED, 3, 26214, torch.device("cpu")),
    "normals": lambda place: draw_normals([place], SEED, 3, torch.float64, torch.device("cpu")),
    "rounding": lambda place: draw_rounding_words([place], SEED, 3, torch.device("cpu")),
    "signs": lambda place: draw_signs([place], SEED, 3, torch.float32, torch.device("cpu")),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(
    ("whole", "offset", "local"),
    [
        ((1000,), (37,), (200,)),
        ((9, 50), (4, 0), (3, 50)),
        ((9, 50), (2, 13), (1, 20)),
        ((4, 5, 30), (1, 2, 0), (1, 2, 30)),
        ((9, 50), (0, 13), (9, 20)),
        ((4, 5, 30), (1, 0, 3), (2, 5, 7)),
        ((9, 50), (9, 0), (0, 50)),
    ],
)
def test_a_shard_draws_that_part_of_the_whole(whole, offset, local, draw):
    """Runs of the whole, which share blocks, and boxes, whose elements have one each."""
    box = tuple(slice(first, first + size) for first, size in zip(offset, local, strict=True))
    [part], [full] = draw(Place(local, 5, Shard(whole, offset, ()))), draw(Place(whole, 5))
    assert part.shape == torch.Size(local)
    assert torch.equal(part, full[box])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_run_far_into_a_huge_tensor_draws_as_its_elements_do(draw, monkeypatch):
    place = Place((1, 100), 5, Shard((2**20, 2**20), (2**19 + 3, 77), ()))
    [run] = draw(place)
    monkeypatch.setattr(stream, "_run_start", lambda place: None)
    [elements] = draw(place)
    assert torch.equal(run, elements)
