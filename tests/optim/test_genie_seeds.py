"""GENIEs that are given no seed draw apart, and say where no seed keeps their draws apart."""

import copy
import gc
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from shiftproof.optim import GENIE, SAM
from shiftproof.optim.genie import seeds


@pytest.fixture(autouse=True)
def no_others(monkeypatch):
    """As in a process that has made no GENIE yet: other tests may have left some."""
    monkeypatch.setattr(seeds, "_living", type(seeds._living)())


def make(**options):
    return GENIE([nn.Parameter(torch.zeros(1000))], lr=1.0, noise=0.0, dropout=0.5, **options)


def seed_of(optimizer):
    return optimizer.param_groups[0]["seed"]


def moved(optimizer):
    p = optimizer.param_groups[0]["params"][0]
    p.grad = torch.ones(1000)
    optimizer.step()
    return p.detach() != 0


def test_the_first_takes_0_and_the_next_what_is_free():
    first = make()
    second, third = make(), make(seed=5)
    fourth = make()
    assert [seed_of(each) for each in (first, second, third, fourth)] == [0, 1, 5, 2]
    assert second.defaults["seed"] == 1
    del first
    assert seed_of(make()) == 0


def test_two_in_one_model_draw_different_masks_and_an_explicit_seed_the_same():
    generator, discriminator = make(), make()
    first, second = moved(generator), moved(discriminator)
    assert 400 < (first ^ second).sum() < 600
    assert torch.equal(moved(make(seed=0)), first)
    assert torch.equal(moved(make(seed=1)), second)


def test_one_per_parameter_draws_different_masks():
    masks = torch.stack([moved(optimizer) for optimizer in [make() for _ in range(6)]])
    agreement = (masks[:, None] == masks[None]).float().mean(2)
    assert ((agreement > 0.4) & (agreement < 0.6) | torch.eye(6, dtype=torch.bool)).all()


def test_one_within_sam_counts():
    sam = SAM([nn.Parameter(torch.zeros(3))], GENIE)
    assert (seed_of(sam), seed_of(make())) == (0, 1)


@pytest.mark.parametrize("cycle", [False, True])
def test_a_dropped_one_frees_its_seed_even_in_a_cycle(cycle):
    """Replicas must take equal seeds, whenever each of them collects its garbage."""

    def train():
        optimizer = make()
        if cycle:
            optimizer.me = optimizer
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        moved(optimizer)
        return seed_of(optimizer)

    gc.disable()
    try:
        assert [train() for _ in range(3)] == [0, 0, 0]
    finally:
        gc.enable()


def test_replicas_collect_what_was_dropped_without_a_step_too(monkeypatch):
    _World(monkeypatch, 2)

    def build():
        optimizer = make()
        optimizer.me = optimizer
        return seed_of(optimizer)

    gc.disable()
    try:
        assert [build() for _ in range(3)] == [0, 0, 0]
    finally:
        gc.enable()


def test_threads_may_build_them():
    with ThreadPoolExecutor(4) as pool:
        optimizers = list(pool.map(lambda _: make(), range(200)))
    assert len(optimizers) == 200


def test_a_group_added_later_and_a_loaded_state_keep_the_seed():
    first, second = make(), make()
    second.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert [group["seed"] for group in second.param_groups] == [1, 1]
    third = make()
    third.load_state_dict(make(seed=9).state_dict())
    assert seed_of(third) == 9
    third.load_state_dict(first.state_dict())
    assert (seed_of(third), seed_of(first)) == (0, 0)
    third.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert third.param_groups[1]["seed"] == 0  # as in a run that was never interrupted


def test_copies_and_pickles_go_on_with_the_seed_and_keep_it_from_others():
    original = make()
    copied, pickled = copy.deepcopy(original), pickle.loads(pickle.dumps(original))  # noqa: S301
    assert seed_of(copied) == seed_of(pickled) == 0
    del original
    assert seed_of(make()) == 1
    assert torch.equal(moved(copied), moved(pickled))


class _World:
    """A process group that is not there."""

    def __init__(self, monkeypatch, size):
        monkeypatch.setattr(seeds, "_warned", False)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: size)


def flattened():
    p = nn.Parameter(torch.ones(8))
    p._fsdp_flattened = True  # as FSDP1 marks what it shards
    return p


def test_fsdp1_is_told_once_that_masks_repeat(monkeypatch):
    _World(monkeypatch, 2)
    with pytest.warns(UserWarning, match="under FSDP1 every process draws the same mask.*FSDP2"):
        GENIE([flattened()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GENIE([flattened()])


@pytest.mark.parametrize(("size", "options"), [(1, {}), (2, {"dropout": 0.0, "noise": 0.0})])
def test_nothing_is_told_where_nothing_repeats(monkeypatch, size, options):
    _World(monkeypatch, size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GENIE([flattened()], **options)
        GENIE([nn.Parameter(torch.ones(2))])


def test_the_zero_redundancy_optimizer_is_told(monkeypatch):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    class Zero(ZeroRedundancyOptimizer):
        """What builds the local optimizer, without the processes."""

        def __init__(self, params, optimizer_class):
            self.optim = optimizer_class(params)

    _World(monkeypatch, 2)
    with pytest.warns(UserWarning, match="under ZeroRedundancyOptimizer every process draws the same"):
        Zero([nn.Parameter(torch.ones(2))], partial(GENIE, lr=0.1))
