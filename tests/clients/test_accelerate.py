"""Accelerate's loop beside the loop by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accelerate_state import forget_accelerate
from clients.plain import MULTI_PASS, OPTIMIZERS, SINGLE_PASS, assert_same_state, assert_trained_alike, train

EXAMPLES, BATCH = 24, 4
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture
def accelerate(client):
    """The package as a process has it that has not used it: its settings are the process's."""
    package = client("accelerate")
    forget_accelerate()
    yield package
    forget_accelerate()


def network(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    )


def data():
    draw = torch.Generator().manual_seed(1)
    return torch.utils.data.TensorDataset(
        torch.randn(EXAMPLES, 6, generator=draw), torch.randint(3, (EXAMPLES,), generator=draw)
    )


def loader():
    return torch.utils.data.DataLoader(data(), batch_size=BATCH)


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def prepared(accelerate, name, model, **options):
    accelerator = accelerate.Accelerator(cpu=True, **options)
    optimizer = OPTIMIZERS[name](model.parameters())
    parts = accelerator.prepare(model, optimizer, loader(), halving(optimizer))
    return SimpleNamespace(
        accelerator=accelerator, **dict(zip(("model", "optimizer", "loader", "scheduler"), parts, strict=True))
    )


@pytest.mark.parametrize("name", SINGLE_PASS)
def test_accumulate_steps_on_the_mean_of_its_batches(accelerate, name):
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    run = prepared(accelerate, name, model, gradient_accumulation_steps=2)
    for batch in run.loader:
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(loss_of(run.model, batch))
            if run.accelerator.sync_gradients:
                run.accelerator.clip_grad_norm_(run.model.parameters(), 0.3)
            run.optimizer.step()
            run.scheduler.step()
            run.optimizer.zero_grad()
    batches = list(loader())
    optimizer = OPTIMIZERS[name](expected.parameters())
    updates = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    train(expected, optimizer, updates, loss_of, clip=0.3, scheduler=halving(optimizer))
    assert_trained_alike(model, expected, start)


@every_optimizer
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_closure_over_micro_batches_steps_on_their_mean(accelerate, name, precision):
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    run = prepared(accelerate, name, model, mixed_precision=precision)
    losses = []
    for inputs, targets in run.loader:

        def closure(inputs=inputs, targets=targets):
            run.optimizer.zero_grad()
            total = 0.0
            for half in zip(inputs.chunk(2), targets.chunk(2), strict=True):
                loss = loss_of(run.model, half) / 2
                run.accelerator.backward(loss)
                total += loss.item()
            run.accelerator.clip_grad_norm_(run.model.parameters(), 0.3)
            losses.append(total)

        assert run.optimizer.step(closure) is None  # whatever the closure returns
        run.scheduler.step()
    passes = getattr(run.optimizer.optimizer, "passes", 1)
    updates = [list(zip(inputs.chunk(2), targets.chunk(2), strict=True)) for inputs, targets in loader()]

    def by_hand(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch[0])
        return F.cross_entropy(logits.float(), batch[1])  # accelerate hands out float32

    optimizer = OPTIMIZERS[name](expected.parameters())
    at_the_weights = train(expected, optimizer, updates, by_hand, clip=0.3, scheduler=halving(optimizer))
    assert_trained_alike(model, expected, start)
    assert losses[::passes] == at_the_weights


@every_optimizer
def test_accumulate_drops_batches_of_closures(accelerate, name):
    """A fact about accelerate, which calls no closure before the last batch of an update: the guide says so."""
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    run = prepared(accelerate, name, model, gradient_accumulation_steps=2)
    calls = 0
    for batch in run.loader:
        with run.accelerator.accumulate(run.model):

            def closure(batch=batch):
                nonlocal calls
                calls += 1
                run.optimizer.zero_grad()
                run.accelerator.backward(loss_of(run.model, batch))

            run.optimizer.step(closure)
    batches = list(loader())
    assert calls == len(batches) // 2 * getattr(run.optimizer.optimizer, "passes", 1)
    optimizer = OPTIMIZERS[name](expected.parameters())
    train(expected, optimizer, [[b] for b in batches[1::2]], lambda model, batch: loss_of(model, batch) / 2)
    assert_trained_alike(model, expected, start)


@pytest.mark.parametrize("name", MULTI_PASS)
def test_a_step_without_a_closure_says_what_is_missing(accelerate, name):
    model = network()
    run = prepared(accelerate, name, model)
    before = copy.deepcopy(model)
    run.accelerator.backward(loss_of(before, next(iter(run.loader))))
    run.accelerator.backward(loss_of(model, next(iter(run.loader))))
    with pytest.raises(ValueError, match=r"SAM evaluates the loss 2 times a step, so it needs a closure"):
        run.optimizer.step()
    assert all(map(torch.equal, model.parameters(), before.parameters()))


@every_optimizer
def test_a_run_goes_on_from_save_state_bit_for_bit(accelerate, tmp_path, name):
    start = network(dropout=0.5)

    def steps(run, batches):
        for batch in batches:

            def closure(batch=batch):
                run.optimizer.zero_grad()
                run.accelerator.backward(loss_of(run.model, batch))

            run.optimizer.step(closure)
            run.scheduler.step()

    batches = list(loader())
    whole = prepared(accelerate, name, copy.deepcopy(start))
    torch.manual_seed(5)
    steps(whole, batches[:3])
    whole.accelerator.save_state(tmp_path)
    steps(whole, batches[3:])

    resumed = prepared(accelerate, name, network(dropout=0.5, seed=1))
    torch.manual_seed(6)
    resumed.accelerator.load_state(tmp_path)
    steps(resumed, batches[3:])
    assert_trained_alike(resumed.model, whole.model, start)
    assert_same_state(resumed.optimizer, whole.optimizer)


def test_the_guide_trains_and_saves(accelerate, run_guide):
    names = run_guide("accelerate")
    [state] = {float(entry["step"]) for entry in names["optimizer"].optimizer.state.values()}
    assert state == len(names["loader"]) == 4
