"""The recorder: it changes nothing, and what it measures is what a plain computation gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accelerate_state import forget_accelerate
from shiftproof.base.registry import UnknownNameError
from shiftproof.diagnostics import Recorder
from shiftproof.diagnostics.preconditioner import preconditioner
from shiftproof.optim import OPTIMIZERS, SAM

STEPS = 7


def _net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def _batch(*key: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(hash(key) % 2**31)
    return torch.randn(12, 6, generator=random), torch.randint(3, (12,), generator=random)


def _fresh(step: int) -> list[tuple[Tensor, Tensor]]:
    torch.rand(1)  # what a user's loader draws must not matter either, within the recorder's care
    return [_batch(1, step), _batch(2, step)]


def _train(
    name: str, closure: bool, record: Callable[[nn.Module, Any], Recorder] | None
) -> tuple[dict[str, Tensor], Tensor, Recorder | None]:
    model = _net()
    optimizer = OPTIMIZERS[name](model.parameters(), lr=0.05, seed=3)
    recorder = None if record is None else record(model, optimizer)
    torch.manual_seed(5)
    for step in range(1, STEPS + 1):
        inputs, targets = _batch(0, step)

        def evaluate(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    return copy.deepcopy(model.state_dict()), torch.rand(3), recorder


@pytest.mark.parametrize(
    ("name", "closure"),
    [("sgd", False), ("adam", True), ("sam", True), ("genie", False), ("genie_released", True), ("gam", True)],
)
def test_training_is_bit_identical_with_and_without(name: str, closure: bool) -> None:
    plain, drawn, _ = _train(name, closure, None)

    def record(model: nn.Module, optimizer: Any) -> Recorder:
        return Recorder(model, optimizer, F.cross_entropy, _fresh, every=2, unseen=lambda step: _batch(9, step))

    recorded, drawn_with, recorder = _train(name, closure, record)
    assert recorder is not None
    assert [record["step"] for record in recorder.records] == [1, 3, 5, 7]
    assert all(torch.equal(plain[key], recorded[key]) for key in plain)
    assert torch.equal(drawn, drawn_with)


def _gradient(model: nn.Module, *batches: tuple[Tensor, Tensor]) -> Tensor:
    """The mean of the batches' gradients in evaluation mode, flat, in float64."""
    model = copy.deepcopy(model).double().eval()
    loss = torch.stack([F.cross_entropy(model(inputs.double()), targets) for inputs, targets in batches]).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_contributions_are_scalar_products_with_the_gradients_where_the_step_began() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=1, unseen=lambda step: _batch(9, step))
    for step in (1, 2, 3):
        start = copy.deepcopy(model)
        optimizer.zero_grad()
        F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1]).backward()
        optimizer.step()
        update = torch.cat(
            [(a - b).flatten() for a, b in zip(start.parameters(), model.parameters(), strict=True)]
        ).double()
        own, fresh, unseen = (
            _gradient(start, *batches) for batches in ([_batch(0, step)], _fresh(step), [_batch(9, step)])
        )
        found = recorder.contributions[-1]
        expected = [
            update @ own,
            update @ fresh,
            update @ unseen,
            0.1 * own @ own,
            0.1 * own @ fresh,
            0.1 * own @ unseen,
        ]
        assert torch.tensor(found).double() == pytest.approx(torch.stack(expected).detach(), rel=1e-4)
        cosine = F.cosine_similarity(_gradient(start, _fresh(step)[0]), _gradient(start, _fresh(step)[1]), dim=0)
        assert recorder.records[-1]["agreement/mean"] == pytest.approx(float(cosine), abs=1e-5)
        magnitudes = recorder.magnitudes[-1].double()  # a small net is sampled whole
        assert torch.allclose(magnitudes, update.abs())
    momentum_alone = recorder.osgr()
    assert momentum_alone["osgr"].value != momentum_alone["osgr_frozen"].value


def test_the_gradient_of_a_multi_pass_step_is_that_of_its_first_pass() -> None:
    model = nn.Linear(6, 3)
    optimizer = OPTIMIZERS["sam"](model.parameters(), lr=0.01, rho=5.0)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=1, track=["osgr"])
    gradients = []
    for step in (1, 2):
        gradients.append(_gradient(model, _batch(0, step)))
        before = torch.cat([p.detach().flatten() for p in model.parameters()])

        def evaluate(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1])
            loss.backward()
            return loss

        optimizer.step(closure=evaluate)  # by name
        update = before - torch.cat([p.detach().flatten() for p in model.parameters()])
        assert recorder.contributions[-1].taken_batch == pytest.approx(float(update.double() @ gradients[-1]), rel=1e-4)
    assert recorder.contributions[0].frozen_batch is None  # Adam has no second moment before its first step
    assert recorder.contributions[1].frozen_batch is not None


def test_a_loop_that_continues_records_what_one_without_a_break_does() -> None:
    def run(breaks: bool) -> Recorder:
        model = nn.Linear(6, 3)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=2)
        for step in range(1, 7):
            if breaks and step == 4:
                saved = recorder.state_dict()
                recorder.close()
                recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=2)
                recorder.load_state_dict(saved)
            optimizer.zero_grad()
            F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1]).backward()
            optimizer.step()
        return recorder

    whole, broken = run(False), run(True)
    assert whole.records == broken.records
    assert whole.contributions == broken.contributions
    assert whole.agreements == broken.agreements
    assert all(torch.equal(a, b) for a, b in zip(whole.magnitudes, broken.magnitudes, strict=True))


def test_a_step_that_failed_is_not_measured_by_the_next() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=2)

    def fails() -> Tensor:
        raise RuntimeError("of the user's loss")

    with pytest.raises(RuntimeError, match="of the user's loss"):
        optimizer.step(fails)
    F.cross_entropy(model(_batch(0, 1)[0]), _batch(0, 1)[1]).backward()
    optimizer.step()
    assert not recorder.records
    optimizer.step()
    assert [record["step"] for record in recorder.records] == [3]


def test_one_domain_has_no_agreement_and_none_is_refused() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, F.cross_entropy, lambda step: [_batch(step)]) as recorder:
        F.cross_entropy(model(_batch(0, 1)[0]), _batch(0, 1)[1]).backward()
        optimizer.step()
    assert "agreement/mean" not in recorder.records[0]
    assert "osgr/taken_fresh" in recorder.records[0]
    with (
        Recorder(model, optimizer, F.cross_entropy, lambda step: []),
        pytest.raises(ValueError, match="no batch at step 1"),
    ):
        optimizer.step()


class _Writer:
    def __init__(self) -> None:
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.written.append((tag, scalar_value, global_step))


def test_records_reach_a_table_a_figure_and_a_writer() -> None:
    pandas = pytest.importorskip("pandas")
    model, writer = nn.Linear(6, 3), _Writer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, F.cross_entropy, _fresh, every=1, writer=writer) as recorder:
        for step in (1, 2):
            optimizer.zero_grad()
            F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1]).backward()
            optimizer.step()
    optimizer.step()  # after the block nothing is recorded
    frame = recorder.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["step"].tolist() == [1, 2]
    for record in recorder.records:
        for name, value in record.items():
            assert name == "step" or (name, value, record["step"]) in writer.written
    assert [axes.get_xlabel() for axes in recorder.plot().axes] == ["step"] * 3


def test_what_is_not_meant_is_refused() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnknownNameError, match=r"measurement.*balanec.*balance"):
        Recorder(model, optimizer, F.cross_entropy, _fresh, track=["balanec"])
    with pytest.raises(ValueError, match="every must be"):
        Recorder(model, optimizer, F.cross_entropy, _fresh, every=0)
    with pytest.raises(ValueError, match="not the model's"):
        Recorder(nn.Linear(6, 3), optimizer, F.cross_entropy, _fresh)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh)
    with pytest.raises(ValueError, match="no OSGR"):
        recorder.osgr()
    with pytest.raises(ValueError, match="nothing was measured"):
        recorder.plot()


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: a subclass that is not initialised as one, and steps what it holds."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.scaler = optimizer, None

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)


class Wrapped:
    """As Lightning's: takes on the class of what it holds, and hands everything but the step on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._on_before_step = optimizer, lambda: None
        self.__class__ = type("Wrapped" + type(optimizer).__name__, (Wrapped, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


def _accelerate(optimizer: torch.optim.Optimizer) -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


@pytest.fixture
def accelerate_state() -> Iterator[None]:
    """Find and leave nothing in accelerate's state, which the whole process shares with other tests."""
    forget_accelerate()
    yield
    forget_accelerate()


def _lookahead(optimizer: torch.optim.Optimizer) -> Any:
    """Of timm: it has hooks, and runs none."""
    return pytest.importorskip("timm.optim").Lookahead(optimizer, k=100)


@pytest.mark.usefixtures("accelerate_state")
@pytest.mark.parametrize("wrap", [Accelerated, Wrapped, lambda o: Accelerated(Wrapped(o)), _accelerate, _lookahead])
@pytest.mark.parametrize("build", [torch.optim.Adam, SAM])
def test_what_wraps_an_optimizer_is_followed_to_what_it_steps(wrap: Any, build: Any) -> None:
    def run(wrap: Any) -> Recorder:
        model = nn.Linear(6, 3)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = wrap(build(model.parameters(), lr=0.05))
        recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=2)
        for step in range(1, 4):

            def evaluate(step: int = step) -> Tensor:
                model.zero_grad()
                loss = F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1])
                loss.backward()
                return loss

            optimizer.step(evaluate)
        factors = preconditioner(optimizer)
        assert factors is not None
        assert [factor.shape for factor in factors] == [p.shape for p in model.parameters()]
        return recorder

    wrapped, plain = run(wrap), run(lambda optimizer: optimizer)
    assert len(plain.records) == 2
    assert plain.records[1].keys() > {"osgr/frozen_batch", "balance/gini", "agreement/mean"}
    assert wrapped.records == plain.records


def test_what_steps_nothing_with_hooks_is_refused() -> None:
    model = nn.Linear(6, 3)
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]

    class Both(Wrapped):
        def __init__(self) -> None:
            self.first, self.second = optimizers
            self.param_groups: list[Any] = []

    class Neither(Wrapped):
        def __init__(self) -> None:
            self.param_groups: list[Any] = []

    for kind, held in ((Both, 2), (Neither, 0)):
        with pytest.raises(TypeError, match=f"{kind.__name__} is not a torch.optim.Optimizer.*holds {held} optimizers"):
            Recorder(model, kind(), F.cross_entropy, _fresh)  # type: ignore[arg-type]
        assert preconditioner(kind()) is None  # type: ignore[arg-type]


def _three_layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("name", ["adam", "sam"])
@pytest.mark.parametrize("zeroed_by", ["optimizer", "model"])
def test_parameters_may_be_frozen_unfrozen_and_added_meanwhile(name: str, zeroed_by: str) -> None:
    model = _three_layers()
    first, second, third = model[0], model[2], model[4]
    first.requires_grad_(False)
    optimizer = OPTIMIZERS[name]([*first.parameters(), *third.parameters()], lr=0.05, seed=0)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=1, unseen=lambda step: _batch(9, step))
    plan = {1: [third], 2: [first, third], 3: [first], 4: [first, second], 5: [first, second, third], 6: []}
    for step, trained in plan.items():
        for layer in (first, second, third):
            layer.requires_grad_(layer in trained)
        if step == 4:
            optimizer.add_param_group({"params": second.parameters()})
        start = copy.deepcopy(model)

        def evaluate(step: int = step) -> Tensor:
            (optimizer if zeroed_by == "optimizer" else model).zero_grad()
            loss = F.cross_entropy(model(_batch(0, step)[0]), _batch(0, step)[1])
            if loss.requires_grad:
                loss.backward()
            return loss

        optimizer.step(evaluate)
        if not trained:
            assert [record["step"] for record in recorder.records] == [1, 2, 3, 4, 5]
            continue
        trains = torch.cat([torch.full_like(p, p.requires_grad).flatten().bool() for p in start.parameters()])
        changes = [(a - b).flatten() for a, b in zip(start.parameters(), model.parameters(), strict=True)]
        update = torch.cat(changes).double().detach()
        assert not update[~trains].any()
        start.requires_grad_(True)
        own, *fresh, unseen = (
            _gradient(start, batch)[trains] for batch in (_batch(0, step), *_fresh(step), _batch(9, step))
        )
        found = recorder.contributions[-1]
        expected = [update[trains] @ own, update[trains] @ (sum(fresh) / 2), update[trains] @ unseen]
        assert [found.taken_batch, found.taken_fresh, found.taken_unseen] == pytest.approx(
            [float(e) for e in expected], rel=1e-3
        )
        assert (found.frozen_batch is None) == (step == 1)
        cosine = F.cosine_similarity(fresh[0], fresh[1], dim=0)
        assert recorder.records[-1]["agreement/mean"] == pytest.approx(float(cosine), abs=1e-5)
        names = [str(2 * i) for i, layer in enumerate((first, second, third)) if layer in trained]
        assert list(recorder.agreements[-1].layers) == names
        magnitudes = update[trains].abs().sort().values
        ranks = torch.arange(1, len(magnitudes) + 1)
        gini = 2 * (ranks * magnitudes).sum() / (len(magnitudes) * magnitudes.sum()) - 1 - 1 / len(magnitudes)
        assert recorder.records[-1]["balance/gini"] == pytest.approx(float(gini), abs=1e-5)
        # the elements of the picture stay those of what trained when the recorder was built
        third_layer = torch.cat([change.detach().abs() for change in changes[-2:]])
        torch.testing.assert_close(recorder.magnitudes[-1], third_layer)


def test_an_optimizer_with_nothing_to_train_or_parameters_of_another_model_is_refused() -> None:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, F.cross_entropy, _fresh, every=1)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="steps no parameter that requires a gradient"):
        Recorder(model, optimizer, F.cross_entropy, _fresh)
    optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    with pytest.raises(ValueError, match="not the model's"):
        optimizer.step()
    recorder.close()


def test_a_single_element_that_trains_has_no_balance() -> None:
    model = nn.Linear(6, 3)
    scale = nn.Parameter(torch.ones(()))
    model.register_parameter("scale", scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lambda x, y: F.cross_entropy(x * scale, y), _fresh, every=1) as recorder:
        model.weight.requires_grad_(False)
        model.bias.requires_grad_(False)
        F.cross_entropy(model(_batch(0)[0]) * scale, _batch(0)[1]).backward()
        optimizer.step()
    assert "osgr/taken_batch" in recorder.records[0]
    assert "balance/gini" not in recorder.records[0]
    assert not recorder.magnitudes[0][:-1].any()
