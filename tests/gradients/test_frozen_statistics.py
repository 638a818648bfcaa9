"""Passes that leave no trace in buffers, whatever keeps something there."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from annealing.made_up_domains import made_up
from shiftproof.annealing import GGA, GGAL, domain_similarities
from shiftproof.diagnostics import Recorder, gradient_agreement, hessian_trace, osgr_by_definition
from shiftproof.gradients.domains import evaluated_domains
from shiftproof.gradients.modes import evaluation_mode, frozen_statistics
from shiftproof.optim import ASAM, FAD, GAM, GSAM, SAGM, SAM


class Codebook(nn.Module):
    """Its codes follow what it sees, by the way round autograd that such modules take."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.linspace(-1, 1, 8).view(2, 4))
        self.register_buffer("used", torch.zeros(2, dtype=torch.int64), persistent=False)

    def forward(self, maps):
        rows = maps.movedim(1, -1).flatten(0, -2)
        nearest = torch.cdist(rows.detach(), self.codes).argmin(1)
        self.used += torch.bincount(nearest, minlength=2)
        self.codes.data.lerp_(rows.detach()[:2], 0.1)
        return maps + F.embedding(nearest, self.codes.clone()).view_as(maps.movedim(1, -1)).movedim(-1, 1)


class Growing(nn.Module):
    """Assigns its buffers anew, and lets one grow."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, maps):
        mean = maps.detach().mean((0, 2, 3))
        self.mean = self.mean.lerp(mean, 0.1)
        self.seen.resize_(len(self.seen) + 1)
        self.seen[-1] = mean.norm()
        return maps - self.mean.view(1, -1, 1, 1)


class Parent(nn.Module):
    """Counts in a child that is never called."""

    def __init__(self):
        super().__init__()
        self.child = nn.Module()
        self.child.register_buffer("calls", torch.zeros(()))

    def forward(self, maps):
        self.child.calls += 1
        return maps * (1 + 1 / self.child.calls)


def _hooked():
    """A hook of the user's counts."""
    module = nn.Conv2d(4, 4, 1)
    module.register_buffer("calls", torch.zeros(()))
    module.register_forward_hook(lambda module, args, output: module.calls.add_(1) and None)
    return module


def _timm():
    return pytest.importorskip("timm.layers").BatchNormAct2d(4)


def _quantized():
    quantization = pytest.importorskip("torch.ao.quantization")
    return quantization.FusedMovingAvgObsFakeQuantize(quantization.MovingAverageMinMaxObserver)


def _lazy():
    module = nn.LazyBatchNorm2d()
    module(torch.ones(2, 4, 3, 3))
    return module


KINDS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "cumulative batch norm": lambda: nn.BatchNorm2d(4, momentum=None),
    "synchronised batch norm": lambda: nn.SyncBatchNorm(4),
    "lazy batch norm": _lazy,
    "timm's batch norm": _timm,
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "spectral norm, by a hook": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
    "spectral norm, parametrised": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
    "fake quantisation": _quantized,
    "codebook": Codebook,
    "growing": Growing,
    "parent": Parent,
    "hook": _hooked,
}


def _model(kind):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some of them
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), KINDS[kind](), nn.Flatten(), nn.Linear(100, 3))


def _batch(seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 5, 5, generator=random), torch.randint(3, (6,), generator=random)


def _buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _assert_equal(model, expected):
    found = _buffers(model)
    assert found.keys() == expected.keys()
    for name, buffer in found.items():
        assert torch.equal(buffer, expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [SAM, ASAM, GSAM, SAGM, GAM, FAD])
def test_a_step_leaves_what_one_pass_leaves(optimizer, kind):
    model, batches = _model(kind), [_batch(1), _batch(2)]
    stepped = optimizer(model.parameters(), torch.optim.SGD, lr=0.01)
    once = copy.deepcopy(model)
    held = dict(model.named_buffers())

    def closure():  # accumulates
        stepped.zero_grad()
        losses = [F.cross_entropy(model(inputs), targets) for inputs, targets in batches]
        sum(losses).backward()
        return sum(losses).detach()

    for _ in range(2):
        once.load_state_dict({**once.state_dict(), **dict(model.named_parameters())})
        stepped.step(closure)
        for inputs, _ in batches:
            once(inputs)
        _assert_equal(model, _buffers(once))
    if kind != "growing":
        assert all(buffer is held[name] for name, buffer in model.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_diagnostics_and_annealers_leave_nothing(kind):
    model, batches = _model(kind), [_batch(1), _batch(2)]
    model(_batch(0)[0])  # statistics that are no longer those of the start
    expected, parameters = _buffers(model), list(model.parameters())
    losses = [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    GGA(candidates=2, start=1, end=1).before_step(parameters, 1, losses)
    GGAL().edit_gradients(parameters, 1, losses)
    domain_similarities(parameters, losses)
    with Recorder(model, optimizer, F.cross_entropy, lambda step: batches, unseen=lambda step: _batch(3)) as recorder:
        optimizer.step()
    assert recorder.records
    gradient_agreement(model, F.cross_entropy, batches)
    osgr_by_definition(model, F.cross_entropy, [(batches[:1], batches[1:])], None, 0.1)
    if kind not in ("fake quantisation", "codebook"):  # these have no second derivative
        hessian_trace(model, F.cross_entropy, batches, probes=2)
    _assert_equal(model, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_domain_evaluated_twice_is_equal_bit_by_bit(kind):
    model, (inputs, targets) = _model(kind), _batch(1)
    model(_batch(0)[0])
    parameters = list(model.parameters())
    losses = [lambda: F.cross_entropy(model(inputs), targets)] * 2
    with evaluated_domains(parameters, losses, 0, 1) as evaluate:
        first, _, second = evaluate(0), evaluate(1), evaluate(0)
    assert first.loss == second.loss
    assert all(torch.equal(a, b) for a, b in zip(first.parts, second.parts, strict=True))


@pytest.mark.parametrize("compiled", ["a wrapper", "in place", "a part, in place"])
def test_a_compiled_model_counts_once_and_is_compiled_once(compiled):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = nn.Sequential(norm, nn.ReLU())
    if compiled == "a wrapper":
        model = torch.compile(model, backend=backend)
    else:
        (model if compiled == "in place" else norm).compile(backend=backend)
    optimizer, inputs = SAM(norm.parameters(), torch.optim.SGD, lr=0.1), torch.randn(5, 3)

    def closure():
        optimizer.zero_grad()
        model(inputs).square().sum().backward()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # torch 2.13, tracing
        for step in range(1, 12):
            optimizer.step(closure)
            assert norm[1].num_batches_tracked == step
    # torch 2.13 compiles a module that is compiled in place once more after its first pass
    assert len(graphs) == (2 if torch.__version__ < (2, 14) and compiled != "a wrapper" else 1)


def test_graphs_from_before_are_still_differentiated():
    """What was saved for a backward pass holds what it did, so autograd must not take it for changed."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("scale", torch.full((3,), 2.0))

        def forward(self, x):
            return (x * self.weight * self.scale).sum()

    model = Scaled()
    loss = model(torch.ones(3))
    with frozen_statistics():
        model(torch.ones(3)).backward()
    model.zero_grad()
    loss.backward()
    assert model.weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_an_error_in_the_model_leaves_no_trace():
    norm = nn.BatchNorm1d(3)
    plain = nn.Module.__call__

    def fails():
        with frozen_statistics():
            norm(torch.randn(4, 3))
            norm(torch.ones(3))

    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        fails()
    assert nn.Module.__call__ is plain
    assert norm.num_batches_tracked == 0
    norm(torch.randn(4, 3))
    assert norm.num_batches_tracked == 1


def test_threads_and_contexts_within_contexts_keep_apart():
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    plain = nn.Module.__call__
    entered, left = threading.Event(), threading.Event()

    def other():
        with frozen_statistics():
            entered.set()
            left.wait(60)
            second(torch.randn(4, 3))

    thread = threading.Thread(target=other)
    with frozen_statistics() as restore, frozen_statistics():
        thread.start()
        entered.wait(60)
        first(torch.randn(4, 3))
        restore()
        assert first.num_batches_tracked == 0
        first(torch.randn(4, 3))
    left.set()
    thread.join()
    assert nn.Module.__call__ is plain
    assert (first.num_batches_tracked, second.num_batches_tracked) == (0, 0)


def test_hooks_and_differentiating_functions_work_inside():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    expected = _buffers(model)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    called = []
    handle = register_module_forward_pre_hook(lambda module, args: called.append(module))
    try:
        with frozen_statistics():
            torch.func.grad(lambda w: torch.func.functional_call(model, w, (torch.ones(1, 3),)).sum())(weights)
    finally:
        handle.remove()
    assert called == [model, *model]
    _assert_equal(model, expected)


def test_evaluation_mode_keeps_the_buffers_of_modules_that_count_in_it_too():
    model = _model("parent")
    with evaluation_mode(model):
        model(_batch(0)[0])
        assert model[1].child.calls == 1
    assert model[1].child.calls == 0


def test_domains_of_a_made_up_model_leave_its_batch_norm():
    model, losses = made_up(3, dropout=0.5, batch_norm=True)
    expected = _buffers(model)
    domain_similarities(model.parameters(), losses)
    _assert_equal(model, expected)


# ------------------------------------------------------------- whose buffers they are, and what shares their memory


def _norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _stepped(model, forward):
    """Take a step of SAM whose closure evaluates the model in some way."""
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(5, 3).cumsum(0)).square().mean() + forward()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_buffers_that_a_module_is_lent_stay_those_of_the_lender():
    """A mean teacher by functional_call: its statistics count in the first pass alone, and the model keeps its own."""
    model, twin = _norm(), _norm()
    teacher = {name: value.detach().clone() for name, value in model.state_dict().items()}
    other = {name: value.detach().clone() for name, value in teacher.items()}
    own = dict(model.named_buffers())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    _stepped(model, lambda: torch.func.functional_call(model, teacher, (x,)).mean().detach())
    assert all(value is own[name] for name, value in model.named_buffers())
    torch.func.functional_call(twin, other, (x,))
    assert torch.equal(teacher["1.running_mean"], other["1.running_mean"])
    twin(torch.ones(5, 3).cumsum(0))
    _assert_equal(model, _buffers(twin))


def test_an_ensemble_under_vmap_counts_a_pass_once():
    models = [_norm() for _ in range(2)]
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    skeleton, found = copy.deepcopy(models[0]), []
    for passes in (1, 2):
        parameters, buffers = torch.func.stack_module_state(models)

        def mean(p, b):
            return torch.func.functional_call(skeleton, (p, b), (x,)).mean()

        torch.vmap(mean)(parameters, buffers)
        if passes == 2:
            with frozen_statistics():
                torch.vmap(mean)(parameters, buffers)
        found.append(buffers["1.running_mean"])
    assert torch.equal(*found)
    assert torch.equal(skeleton[1].running_mean, torch.zeros(4))
    copy.deepcopy(skeleton)


def test_per_sample_gradients_inside_leave_the_model_whole():
    model = _norm().eval()
    own, weights = dict(model.named_buffers()), {name: p.detach() for name, p in model.named_parameters()}

    def loss(w, x):
        return torch.func.functional_call(model, (w, dict(own)), (x[None],)).mean()

    _stepped(
        model,
        lambda: sum(g.sum() for g in torch.vmap(torch.func.grad(loss), (None, 0))(weights, torch.ones(4, 3)).values()),
    )
    assert all(value is own[name] for name, value in model.named_buffers())
    copy.deepcopy(model)


def test_a_buffer_expanded_over_itself_is_left_alone():
    model = _norm()
    model.register_buffer("scale", torch.tensor([2.0]).expand(3))
    _stepped(model, lambda: 0.0)
    with evaluation_mode(model):
        model(torch.ones(2, 3))
    assert model.scale.tolist() == [2.0] * 3
    assert model[1].num_batches_tracked == 1


def test_a_buffer_in_the_memory_of_a_weight_moves_with_it():
    """Putting it back would undo what GGA has found."""
    model = _norm()
    model.register_buffer("view", model[0].weight.data)
    with frozen_statistics():
        model(torch.ones(2, 3))
        with torch.no_grad():
            model[0].weight.add_(1.0)
        expected = model[0].weight.detach().clone()
    assert torch.equal(model[0].weight, expected)


@pytest.mark.parametrize("start", ["none", "absent"])
def test_a_buffer_that_a_pass_makes_is_taken_away(start):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            if start == "none":
                self.register_buffer("calls", None)

        def forward(self, x):
            if getattr(self, "calls", None) is None:
                self.register_buffer("calls", torch.zeros(()))
            self.calls += 1
            return x

    model = nn.Sequential(Counting())
    with frozen_statistics():
        model(torch.ones(1))
        model(torch.ones(1))
    assert getattr(model[0], "calls", None) is None
    model(torch.ones(1))
    assert model[0].calls == 1


def test_what_another_thread_trains_meanwhile_counts():
    mine, theirs = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with frozen_statistics():
        mine(torch.randn(4, 3))
        thread = threading.Thread(target=lambda: [theirs(torch.randn(4, 3)) for _ in range(5)])
        thread.start()
        thread.join()
    assert (mine.num_batches_tracked, theirs.num_batches_tracked) == (0, 5)


def test_others_may_replace_the_call_of_modules_meanwhile(monkeypatch):
    plain, norm, seen = nn.Module.__call__, nn.BatchNorm1d(3), []
    with frozen_statistics():
        found = nn.Module.__call__

        def theirs(module, *args, **kwargs):
            seen.append(module)
            return found(module, *args, **kwargs)

        nn.Module.__call__ = theirs
        norm(torch.randn(4, 3))
    try:
        assert nn.Module.__call__ is theirs
        norm(torch.randn(4, 3))
        assert norm.num_batches_tracked == 1
        nn.Module.__call__ = found  # as a library that restores what it had found
        with frozen_statistics():
            norm(torch.randn(4, 3))
        assert norm.num_batches_tracked == 1
        assert len(seen) == 2
    finally:
        nn.Module.__call__ = plain
