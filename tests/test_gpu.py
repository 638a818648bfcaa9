"""Optimizers, annealers and the recorder on a GPU: what they give on the CPU, to rounding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.annealing import GGA, GGAL
from shiftproof.diagnostics import Recorder
from shiftproof.optim import OPTIMIZERS

pytestmark = pytest.mark.cuda
GPU = "cuda"
TOLERANCE = 1e-6  # in float64 too: normal numbers are drawn in float32


def batch(*key, device="cpu", dtype=torch.float64):
    random = torch.Generator().manual_seed(hash(key) % 2**31)
    inputs, targets = torch.randn(32, 6, generator=random), torch.randint(3, (32,), generator=random)
    return inputs.to(device, dtype), targets.to(device)


def made_up(name, device, dtype=torch.float64, weights=None):
    """A small net and an optimizer of it at its defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    model.load_state_dict(weights or model.state_dict())
    model.to(device)
    space = OPTIMIZERS[name].search_space(pretrained=False, search="short")
    defaults = {key: hparam.default for key, hparam in space.items()}
    return model, OPTIMIZERS[name](model.parameters(), seed=3, **{**defaults, "lr": 0.05})


def trained(name, model, optimizer, steps):
    """The weights after some steps, on the CPU."""
    device, dtype = model[0].weight.device, model[0].weight.dtype
    for step in steps:
        inputs, targets = batch(step, device=device, dtype=dtype)

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward(create_graph=OPTIMIZERS[name].needs_graph)
            return loss.detach()

        optimizer.step(closure)
    return on_cpu(model)


def on_cpu(model):
    return copy.deepcopy({key: value.detach().cpu() for key, value in model.state_dict().items()})


def assert_close(weights, expected, tolerance):
    for key, value in expected.items():
        torch.testing.assert_close(
            weights[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
        )


every_optimizer = pytest.mark.parametrize("name", list(OPTIMIZERS))


@every_optimizer
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TOLERANCE), (torch.float32, 2e-5)])
def test_steps_are_those_on_the_cpu(name, dtype, tolerance):
    expected = trained(name, *made_up(name, "cpu"), range(5))
    weights = trained(name, *made_up(name, GPU, dtype), range(5))
    assert_close({key: value.double() for key, value in weights.items()}, expected, tolerance)


@every_optimizer
def test_a_run_on_the_cpu_goes_on_on_the_gpu(name):
    expected = trained(name, *made_up(name, "cpu"), range(6))
    model, optimizer = made_up(name, "cpu")
    weights = trained(name, model, optimizer, range(3))
    moved, other = made_up(name, GPU, weights=weights)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_close(trained(name, moved, other, range(3, 6)), expected, TOLERANCE)


@pytest.mark.parametrize(
    "annealer",
    [
        GGA(radius=0.05, candidates=30, start=1, end=3, search="ball"),
        GGA(radius=0.05, candidates=30, start=1, end=3, search="walk"),
        GGAL(gamma=0.1),
    ],
    ids=["ball", "walk", "ggal"],
)
def test_annealers_find_what_they_find_on_the_cpu(annealer):
    found, reports = [], []
    for device in ("cpu", GPU):
        model, _ = made_up("sgd", device)
        batches = [batch(domain, device=device) for domain in range(3)]
        losses = [lambda x=x, y=y, model=model: F.cross_entropy(model(x), y) for x, y in batches]
        own = copy.deepcopy(annealer)
        for step in (1, 2):
            own.before_step(model.parameters(), step, losses, model[0].parameters())
            for loss in losses:
                loss().backward()
            own.edit_gradients(model.parameters(), step, losses)
        found.append(on_cpu(model) | {name: p.grad.cpu() for name, p in model.named_parameters(prefix="grad")})
        reports.append({**own.report(), "seconds": None})
    assert_close(found[1], found[0], TOLERANCE)
    assert reports[1] == pytest.approx(reports[0])


def test_the_recorder_measures_what_it_measures_on_the_cpu():
    records = []
    for device in ("cpu", GPU):
        model, optimizer = made_up("adam", device)

        def fresh(step, device=device):
            return [batch(domain, step, device=device) for domain in (1, 2)]

        with Recorder(model, optimizer, F.cross_entropy, fresh=fresh, every=1) as recorder:
            trained("adam", model, optimizer, range(3))
        records.append((recorder.records, recorder.osgr()["osgr"]))
    assert records[1][1] == pytest.approx(records[0][1], rel=1e-6)
    for record, expected in zip(records[1][0], records[0][0], strict=True):
        assert record == pytest.approx(expected, rel=1e-6)
