"""timm's scaler, moving average, parameter groups and schedules beside the loop by hand."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clients.plain import MULTI_PASS, OPTIMIZERS, SINGLE_PASS, assert_same_state, assert_trained_alike, train

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(scope="module")
def timm(client):
    package = client("timm")
    parts = {name: client(f"timm.{name}") for name in ("optim", "scheduler", "utils")}
    return SimpleNamespace(create=package.create_model, **parts)


@pytest.fixture(scope="module")
def start(timm):
    torch.manual_seed(0)
    return timm.create("test_efficientnet", num_classes=3)


def batches(number=3):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, 32, 32, generator=draw), torch.randint(3, (4,), generator=draw)) for _ in range(number)]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def autocast_loss_of(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, batch)


@pytest.mark.parametrize("name", SINGLE_PASS)
@pytest.mark.parametrize("loss", [loss_of, autocast_loss_of], ids=["float32", "bf16"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaled_training_is_training_without_a_scaler(timm, start, name, loss, clip):
    """Its scale is a power of two, which changes no digit; the batch whose loss is infinite is skipped."""
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    optimizer, by_hand = (OPTIMIZERS[name](net.parameters()) for net in (model, expected))
    scaler = timm.utils.NativeScaler(device="cpu")
    first, second, third = batches()
    for batch, factor in ((first, 1.0), (second, math.inf), (third, 1.0)):
        optimizer.zero_grad()
        scaler(loss(model, batch) * factor, optimizer, clip_grad=clip, parameters=model.parameters())
    assert scaler.state_dict()["scale"] == 2**15
    train(expected, by_hand, [[first]], loss, clip=clip)
    loss(expected, second)  # the statistics of batch norm are the model's, and not skipped
    train(expected, by_hand, [[third]], loss, clip=clip)
    assert_trained_alike(model, expected, start)
    assert_same_state(optimizer, by_hand)


@pytest.mark.parametrize("name", MULTI_PASS)
@pytest.mark.parametrize(
    ("enabled", "error", "message"),
    [(True, RuntimeError, "cannot be stepped by a GradScaler"), (False, ValueError, "so it needs a closure")],
)
def test_the_scaler_cannot_step_a_multi_pass_optimizer(timm, start, name, enabled, error, message):
    model = copy.deepcopy(start)
    scaler = timm.utils.NativeScaler(device="cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", enabled=enabled)  # timm disables it where there is no CUDA
    with pytest.raises(error, match=message):
        scaler(loss_of(model, batches()[0]), OPTIMIZERS[name](model.parameters()))
    assert all(map(torch.equal, model.parameters(), start.parameters()))


@every_optimizer
def test_the_moving_average_is_of_the_weights_after_each_step(timm, start, name):
    model = copy.deepcopy(start)
    average = timm.utils.ModelEmaV3(model, decay=0.75)
    optimizer = OPTIMIZERS[name](model.parameters())
    expected = copy.deepcopy(start)
    by_hand, mean = OPTIMIZERS[name](expected.parameters()), [p.detach().clone() for p in start.parameters()]
    for batch in batches():
        train(model, optimizer, [[batch]], loss_of)
        average.update(model)
        train(expected, by_hand, [[batch]], loss_of)
        mean = [m + 0.25 * (p.detach() - m) for m, p in zip(mean, expected.parameters(), strict=True)]
    assert_trained_alike(model, expected, start)
    # lerp rounds in another order
    torch.testing.assert_close([p.detach() for p in average.module.parameters()], mean, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(p, m) for p, m in zip(expected.parameters(), mean, strict=True))


@every_optimizer
def test_schedules_and_layer_decay_set_every_group_s_learning_rate(timm, start, name):
    def groups(model):
        return timm.optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)

    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    optimizer = OPTIMIZERS[name](groups(model))
    schedule = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-3, lr_min=1e-4, t_in_epochs=False
    )
    by_hand = OPTIMIZERS[name](groups(expected))
    scales = [group["lr_scale"] for group in by_hand.param_groups]
    peak = by_hand.param_groups[0]["lr"]
    assert len(set(scales)) > 2
    rates = [1e-3, *(1e-4 + (peak - 1e-4) * (1 + math.cos(math.pi * t / 4)) / 2 for t in (1, 2, 3))]
    for update, (batch, rate) in enumerate(zip(batches(4), rates, strict=True), start=1):
        train(model, optimizer, [[batch]], loss_of)
        schedule.step_update(update)
        for group, scale in zip(by_hand.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        train(expected, by_hand, [[batch]], loss_of)
    assert_trained_alike(model, expected, start)


def test_the_guide_trains_and_averages(timm, run_guide):
    names = run_guide("timm")
    assert names["optimizer"].param_groups[-1]["lr"] < 0.1
    for p, mean in zip(names["network"].parameters(), names["average"].module.parameters(), strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, mean)
