"""The cost of a step of each optimizer without forward and backward passes, compared with torch's fused AdamW.

All optimizers step parameters of the same shapes in turn, round by round, so that other load on the machine affects
them alike. Gradients change from step to step, because constant ones would have no variance. On a GPU, its own clock
times the steps, and also replays of a CUDA graph, which save the time that Python takes to launch kernels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from shiftproof.models import MODELS, build_network, default_image_size
from shiftproof.optim import GENIE, SAM, GENIEAdamW
from shiftproof.optim.genie import FORMS, INSTRUCTION_SETS, instruction_set, kernel_error, limited_instructions
from shiftproof.training import check_device

SMALL_STD, LARGE_STD = 1e-3, 3.0
_GRADIENT_SETS = 3
_ENOUGH, _TURNS = 1.0, 3  # after this many seconds of steps, this many turns are enough
_GRAPH = ", graph"  # suffix of the names of replayed steps
_BASELINE = "AdamW, fused"
_STEPS_BEFORE_CAPTURE = 3
_NOTES = (
    f"Medians over rounds in which all take turns (fewer, but at least {_TURNS}, after {_ENOUGH:g} s of steps); the",
    "ratio is to torch's fused AdamW, and for replays of a graph to replays of its graph.",
    "Bandwidth: bytes of parameters, gradients and state that one pass reads and writes, over the time, as a share of",
    "the bandwidth of copying a tensor of all parameters in the same run.",
    f"Gradients are normal with standard deviation {SMALL_STD}, or {LARGE_STD} in the rows marked (noise), where",
    "noise acts on most elements.",
)


@dataclass(frozen=True)
class _Candidate:
    name: str
    build: Callable[..., Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    gradient_std: float = SMALL_STD
    instructions: int | None = None

    @property
    def graph(self) -> bool:
        """Whether a CUDA graph of the step is timed."""
        return self.name.endswith(_GRAPH)

    @property
    def baseline(self) -> str:
        """The name of the candidate that this one is compared with."""
        return _BASELINE + _GRAPH if self.graph else _BASELINE


class _PublishedGENIE(Optimizer):
    """The update that GENIE's authors published with the paper, tensor by tensor, for timing only.

    As in their code, each parameter keeps a copy of itself from which the update is subtracted, and mask and noise
    come from torch's generators.
    """

    def __init__(self, params: list[Tensor], rate: float = 0.015, beta: float = 0.95, dropout: float = 0.4) -> None:
        super().__init__(params, {"rate": rate, "beta": beta, "dropout": dropout})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, beta, dropout = group["rate"], group["beta"], group["dropout"]
            for p in group["params"]:
                state = self.state[p]
                grad = p.grad.clone()
                if not state:
                    state["weight"] = 0.0
                    state["prev"] = p.clone()
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["weight"] = beta * state["weight"] + (1 - beta)
                state["mean"].mul_(beta).add_((1 - beta) * grad)
                state["square"].mul_(beta).add_((1 - beta) * grad**2)
                correction = state["weight"]
                rho = (1 - beta) * (2 - correction) / ((1 + beta) * correction)
                mean, square = state["mean"] / correction, state["square"] / correction
                variance = (square - mean**2) / (1 - rho)
                variance = torch.where(variance > 0, variance, torch.full_like(variance, 1e-8))
                averaged = rho * variance
                averaged = torch.where(averaged > 0, averaged, torch.full_like(averaged, 1e-8))
                certainty = torch.tanh(torch.clamp(1 / variance, max=10))
                factor = certainty / (1 + averaged / (mean**2 + 1e-8))
                spread = torch.sum(factor * mean.abs()) / torch.sum(certainty)
                noise = torch.randn_like(p) * spread * (1 - certainty)
                mask = torch.bernoulli(torch.full_like(p, 1 - dropout)) / (1 - dropout)
                p.copy_(state["prev"] - rate * (mean * factor + noise) * mask)
                state["prev"].copy_(p)


class _SAMUpdate(Optimizer):
    """SAM around Adam, with a closure that only hands over gradients, to time the step without its passes."""

    def __init__(self, params: list[Tensor]) -> None:
        self._sam = SAM(params, lr=1e-3)
        super().__init__(params, {})
        self.state = self._sam.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        grads = [(p, p.grad) for group in self.param_groups for p in group["params"]]

        def hand_over() -> None:
            for p, grad in grads:
                p.grad = grad.detach()

        self._sam.zero_grad()
        self._sam.step(hand_over)


class _Running:
    """A candidate with its own parameters, and the seconds of each of its turns."""

    def __init__(self, candidate: _Candidate, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.candidate, self.seconds = candidate, list[float]()
        self._device = device
        self._params = [torch.zeros(shape, device=device) for shape in shapes]
        self.optimizer = candidate.build(self._params, **candidate.options)
        self._step: Callable[[], object] = self.optimizer.step

    def begin(self, gradients: Sequence[Tensor]) -> None:
        """Take the first step, which creates the state and compiles kernels."""
        if self.candidate.graph:
            for p, grad in zip(self._params, gradients, strict=True):
                p.grad = grad.clone()
            self._step = _captured(self.optimizer)
        else:
            self._give(gradients)
        _timed(self._step, self._device)

    def take_turn(self, gradients: Sequence[Tensor]) -> None:
        """Time a step, unless there have been enough turns."""
        if len(self.seconds) > _TURNS and sum(self.seconds) > _ENOUGH:
            return
        self._give(gradients)
        with limited_instructions(self.candidate.instructions):
            self.seconds.append(_timed(self._step, self._device))

    def _give(self, gradients: Sequence[Tensor]) -> None:
        for p, grad in zip(self._params, gradients, strict=True):
            if self.candidate.graph:  # a graph reads from the addresses at its capture
                p.grad.copy_(grad)  # type: ignore[union-attr]
            else:
                p.grad = grad


def _captured(optimizer: Optimizer) -> Callable[[], None]:
    """Return a function that replays a graph of an optimizer's step on the present gradient tensors."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_STEPS_BEFORE_CAPTURE):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def _candidates(best_build: int, graphs: bool) -> list[_Candidate]:
    """Return all candidates, with rows for the CPU kernel's builds below the best, and with graphs if possible."""
    lr = 1e-4
    choices: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "for-loop": {"foreach": False},
    }
    usual = [
        _Candidate(f"{cls.__name__}, {name}", cls, {"lr": lr, **options, **choices[name]})
        for cls, options in ((AdamW, {}), (Adam, {}), (SGD, {"momentum": 0.9}))
        for name in ("fused", "foreach")
    ]
    forms: list[tuple[str, Callable[..., Optimizer], dict[str, Any]]] = [
        (f"GENIE {form}", GENIE, {"lr": lr, "form": form}) for form in FORMS
    ]
    own: list[tuple[str, Callable[..., Optimizer], dict[str, Any]]] = [("GENIEAdamW", GENIEAdamW, {"lr": lr}), *forms]
    genies = [
        _Candidate(f"{label}, {name}", build, {**options, **choice})
        for label, build, options in own
        for name, choice in choices.items()
    ]
    noisy = [
        _Candidate(f"{label}, fused (noise)", build, {**options, "fused": True}, LARGE_STD)
        for label, build, options in forms
    ]
    builds = [
        _Candidate(f"{label}, fused ({name})", build, {**options, "fused": True}, SMALL_STD, index)
        for label, build, options in own
        for index, name in enumerate(INSTRUCTION_SETS[:best_build])
    ]
    replayed = [
        _Candidate(f"{name}{_GRAPH}", build, {**options, "fused": True, "capturable": True})
        for name, build, options in (
            (_BASELINE, AdamW, {"lr": lr}),
            *((f"{label}, fused", build, options) for label, build, options in own),
        )
        if graphs
    ]
    return [
        *usual,
        *genies,
        *replayed,
        *noisy,
        *builds,
        _Candidate("GENIEAdamW, fused, dropout 0.4", GENIEAdamW, {"fused": True, "dropout": 0.4}),
        *(
            _Candidate(f"{label}, fused, bfloat16 moments", build, {"fused": True, "moment_dtype": torch.bfloat16})
            for label, build in (("GENIEAdamW", GENIEAdamW), ("GENIE paper", GENIE))
        ),
        _Candidate("SAM around Adam, update", _SAMUpdate),
        _Candidate("GENIE as published", _PublishedGENIE),
    ]


def bench_optimizer(
    model: str | None = "resnet18", *, elements: int | None = None, device: str = "cpu", rounds: int = 15
) -> dict[str, Any]:
    """Time a step of every optimizer on the parameters of a model or on one tensor, in float32.

    Args:
        model: name of the model; ignored if ``elements`` is given.
        elements: number of elements of the one tensor.
        device: the device to step on.
        rounds: turns of each optimizer, after one that is not counted.

    Returns:
        JSON values: ``setting``, ``notes`` and ``rows``, each with ``name``, ``milliseconds`` (median), ``least`` and
        ``most``, ``ratio``, ``bandwidth`` (a share) and ``state_bytes`` per parameter; or with ``error``, for
        optimizers that cannot run here.

    Raises:
        ValueError: the model is unknown, the device is not available, or a number is below 1.
    """
    for name, number in (("rounds", rounds), ("elements", elements)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {number}")
    check_device(device)
    where = torch.device(device)
    with torch.cuda.device(where) if where.type == "cuda" else nullcontext():
        return _measured(model, elements, where, rounds)


def _measured(model: str | None, elements: int | None, where: torch.device, rounds: int) -> dict[str, Any]:
    shapes = [torch.Size([elements])] if elements else _shapes(str(model))
    size = sum(shape.numel() for shape in shapes)
    rows = []
    running: list[tuple[dict[str, Any], _Running]] = []
    source, target = torch.zeros(size, device=where), torch.zeros(size, device=where)
    gradients = {std: _gradient_sets(shapes, std, where) for std in (SMALL_STD, LARGE_STD)}
    kernel = where.type == "cpu" and kernel_error() is None
    for candidate in _candidates(instruction_set() if kernel else 0, where.type == "cuda"):
        row: dict[str, Any] = {"name": candidate.name}
        rows.append(row)
        try:
            one = _Running(candidate, shapes, where)
            one.begin(gradients[candidate.gradient_std][0])
        except (RuntimeError, ValueError) as error:
            row["error"] = str(error).partition("\n")[0]
            continue
        running.append((row, one))
    copies = []
    for turn in range(rounds + 1):
        copies.append(_timed(lambda: target.copy_(source), where))
        for _, one in running:
            one.take_turn(gradients[one.candidate.gradient_std][turn % _GRADIENT_SETS])
    bandwidth = 2 * 4 * size / median(copies[1:])
    for row, one in running:
        states = one.optimizer.state.values()
        state = sum(t.numel() * t.element_size() for s in states for t in s.values() if _counts(t))
        taken = median(one.seconds[1:])
        row.update(
            milliseconds=1e3 * taken,
            least=1e3 * min(one.seconds[1:]),
            most=1e3 * max(one.seconds[1:]),
            state_bytes=state / size,
            bandwidth=(3 * 4 * size + 2 * state) / taken / bandwidth,
        )
    milliseconds = {row["name"]: row["milliseconds"] for row, _ in running}
    for row, one in running:
        row["ratio"] = row["milliseconds"] / milliseconds.get(one.candidate.baseline, math.nan)
    return {
        "setting": {
            "tensors": len(shapes),
            "parameters": size,
            "model": None if elements else model,
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "GENIE's fused step": _fused_name(where),
            "copy, GB per second": round(bandwidth / 1e9, 1),
            "rounds": rounds,
            "torch": torch.__version__,
        },
        "notes": list(_NOTES),
        "rows": rows,
    }


def optimizer_table(result: dict[str, Any]) -> str:
    """Return the result of `bench_optimizer` as text."""
    lines = [", ".join(f"{name} {value}" for name, value in result["setting"].items() if value is not None), ""]
    lines.append(f"{'':38}{'ms':>9}{'least':>9}{'most':>9}{'ratio':>8}{'bandwidth':>11}{'state bytes':>13}")
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"{row['name']:38} not run: {row['error']}")
        else:
            times = "".join(f"{row[name]:9.2f}" for name in ("milliseconds", "least", "most"))
            share = f"{100 * row['bandwidth']:.0f} %"
            lines.append(f"{row['name']:38}{times}{row['ratio']:8.2f}{share:>11}{row['state_bytes']:13.1f}")
    return "\n".join([*lines, "", *result["notes"]])


def _shapes(model: str) -> list[torch.Size]:
    """Return the shapes of a model's parameters, including a classifier of 1000 classes."""
    side = default_image_size(model)
    channels = (MODELS[model].channels if model in MODELS else None) or 3
    network = build_network(model, (channels, side, side), 1000, dropout=0.0, seed=0)
    return [p.shape for p in network.parameters()]


def _gradient_sets(shapes: Sequence[torch.Size], std: float, device: torch.device) -> list[list[Tensor]]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        [std * torch.randn(shape, generator=generator, device=device) for shape in shapes]
        for _ in range(_GRADIENT_SETS)
    ]


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes; on a GPU by its clock, from one idle moment to the next."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _counts(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 2  # step counts and scales are per tensor


def _fused_name(device: torch.device) -> str:
    text = repr(GENIE([torch.zeros(1, device=device)]))
    return text.rpartition("implementation of group 0: ")[2].partition("\n")[0]
