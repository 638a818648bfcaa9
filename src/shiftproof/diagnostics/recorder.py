"""Record how updates contribute to generalization, in any training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shiftproof.base.batch import Batch
from shiftproof.base.precise_sums import at_least_float32
from shiftproof.base.registry import UnknownNameError
from shiftproof.diagnostics.agreement import Cosines, GradientAgreement, agreement_of
from shiftproof.diagnostics.balance import UpdateBalance
from shiftproof.diagnostics.hooked_optimizer import hooked_optimizer
from shiftproof.diagnostics.osgr import StepContributions, step_contributions, step_ratios
from shiftproof.diagnostics.preconditioner import preconditioner
from shiftproof.diagnostics.ratio import Ratio
from shiftproof.gradients import DomainGradient, check_dense, check_real, evaluated_domains, evaluation_mode

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


TRACKED = ("osgr", "balance", "agreement")


class ScalarWriter(Protocol):
    """Writes scalars for TensorBoard, as its ``SummaryWriter`` does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one value at a step."""


class Recorder:
    r"""Measures a training loop from hooks around its optimizer's step, without changing training by a single bit.

    At step 1 and every ``every`` steps after it, it measures what ``track`` names:

    * ``"osgr"``: the scalar products of the update with three gradients: on the step's own batch, on a batch never
      trained on, and on an unseen domain. Their means over steps give the one-step generalization ratio
      :math:`E[u \cdot g_{D'}] / E[u \cdot g_D]`, for the step as taken and for :math:`u = P_t g_D` with the
      preconditioner from before the step (see `shiftproof.diagnostics.preconditioner`).
    * ``"balance"``: how evenly the update is spread over all elements (see `UpdateBalance`).
    * ``"agreement"``: cosines of the domains' gradients on the fresh batches (see `gradient_agreement`); skipped if
      there is only one domain.

    Gradients on fresh batches are taken at the start of the step, with the model in evaluation mode. The step's own
    gradient is the content of ``.grad`` at that time or, if the step gets a closure, after the closure's first call.
    The ratio matches the theory only if that is the gradient of ``loss`` too; dropout, batch statistics, clipping and
    scaled losses make a difference. Sums are in float64, even for models in bfloat16.

    The recorder measures those of the optimizer's parameters that require a gradient when the step begins, so
    parameters may be frozen, unfrozen or added in the course of training. Steps at which none trains are not measured.

    Args:
        model: the model being trained.
        optimizer: the optimizer of its parameters: any `torch.optim.Optimizer`, including the multi-pass ones, or a
            wrapper around one, such as the result of accelerate's ``prepare`` (see `hooked_optimizer`).
        loss: maps outputs and targets to the mean loss over samples, as `torch.nn.functional.cross_entropy` does.
        fresh: called with a step's number; returns one batch per domain that the model was never trained on.
        every: number of steps from one measurement to the next.
        track: what to measure, from `TRACKED`.
        unseen: called with a step's number; returns a batch of a domain that is not trained on, for the transfer ratio.
        writer: receives every number as it is measured, under its name in `records`.

    Attributes:
        step: number of the optimizer's steps so far; set it when a loop resumes.
        records: one plain dictionary of numbers per measurement.
        contributions: the terms of the ratios, per measurement.
        agreements: the agreement layer by layer, per measurement.
        magnitudes: the magnitude of the update at `balance`'s sampled elements, (sampled,), per measurement.
        balance: the sampled elements, of the parameters that trained when the recorder was built.

    Raises:
        TypeError: ``optimizer`` runs no hooks, and wraps no optimizer that does.
        ValueError: a name to track is unknown, ``every`` is below 1, a parameter is complex, the optimizer has
            parameters that are not the model's, or none of its parameters requires a gradient.
        RuntimeError: a gradient is sparse (raised in a step).

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import Recorder
        >>> model, loss = torch.nn.Linear(4, 2), torch.nn.functional.cross_entropy
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> inputs, labels = torch.randn(16, 4), torch.randint(2, (16,))
        >>> held_out = [(torch.randn(16, 4), torch.randint(2, (16,)))]
        >>> with Recorder(model, optimizer, loss, fresh=lambda step: held_out, every=5) as recorder:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         loss(model(inputs), labels).backward()
        ...         optimizer.step()
        >>> [record["step"] for record in recorder.records]
        [1, 6]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        fresh: Callable[[int], Sequence[Batch]],
        *,
        every: int = 50,
        track: Sequence[str] = TRACKED,
        unseen: Callable[[int], Batch] | None = None,
        writer: ScalarWriter | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be a whole number above 0, not {every}")
        for name in track:
            if name not in TRACKED:
                raise UnknownNameError("measurement", name, list(TRACKED))
        self.model, self.loss, self.fresh, self.unseen = model, loss, fresh, unseen
        self.every, self.track, self.writer = every, tuple(track), writer
        optimizer = hooked_optimizer(optimizer)
        self._sampled = self._trained(optimizer)
        if not self._sampled:
            raise ValueError("the optimizer steps no parameter that requires a gradient")
        if self.track != ("balance",):
            check_real(self._sampled.values())
        self.step = 0
        self.records: list[dict[str, float]] = []
        self.contributions: list[StepContributions] = []
        self.agreements: list[GradientAgreement] = []
        self.magnitudes: list[Tensor] = []
        self.balance = UpdateBalance(self._sampled)
        self._pending: _Before | None = None
        self._hooks: list[RemovableHandle] = []
        self.follow(optimizer)

    def follow(self, optimizer: Optimizer) -> None:
        """Continue with another optimizer of the same parameters, when a loop replaces its optimizer."""
        optimizer = hooked_optimizer(optimizer)
        self.close()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def close(self) -> None:
        """Remove the hooks from the optimizer; the records stay."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed loop needs, as tensors and plain Python values."""
        return {
            "step": self.step,
            "records": self.records,
            "contributions": [tuple(one) for one in self.contributions],
            "agreements": [
                (one.overall.pairs, {layer: cosines.pairs for layer, cosines in one.layers.items()})
                for one in self.agreements
            ],
            "magnitudes": self.magnitudes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.step = state["step"]
        self.records = list(state["records"])
        self.contributions = [StepContributions(*one) for one in state["contributions"]]
        self.agreements = [
            GradientAgreement(Cosines(overall), {layer: Cosines(pairs) for layer, pairs in layers.items()})
            for overall, layers in state["agreements"]
        ]
        self.magnitudes = list(state["magnitudes"])

    def osgr(self, first: int = 0, last: int | None = None) -> dict[str, Ratio]:
        """Return the ratios over the measurements from ``first`` up to, but not including, ``last`` (None: to the end).

        Raises:
            ValueError: OSGR is not tracked, or nothing was measured.
        """
        if not self.contributions:
            raise ValueError("no OSGR was measured")
        return step_ratios(self.contributions[first:last])

    def to_frame(self) -> pd.DataFrame:
        """Return the records as a table with one row per measurement.

        Raises:
            ValueError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ValueError("pandas is not installed: pip install pandas") from error
        return pd.DataFrame(self.records)

    def plot(self) -> Figure:
        """Draw the records over the steps, one panel per tracked quantity."""
        from shiftproof.diagnostics.recorder_plot import draw_records

        return draw_records(self.records, self.contributions, self.track)

    def _trained(self, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        """Return the parameters that an optimizer currently trains, by name."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        named = {name: p for name, p in self.model.named_parameters() if id(p) in stepped}
        if len(named) != len(stepped):
            raise ValueError("the optimizer steps parameters that are not the model's")
        return named

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.step += 1
        self._pending = None  # drop the measurement of a step that failed
        if (self.step - 1) % self.every:
            return None
        trained = self._trained(optimizer)
        if not trained:
            return None
        before = self._pending = _Before(trained)
        if "osgr" in self.track:
            factors = preconditioner(optimizer)
            before.preconditioner = None if factors is None else _in_order(optimizer, factors, trained)
        if "osgr" in self.track or "agreement" in self.track:
            before.fresh, before.unseen = self._fresh_gradients(list(trained.values()))
        if "osgr" not in self.track:
            return None
        # the closure is the first argument after the optimizer, or a keyword
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            before.keep_gradient()
            return None

        def watched() -> Any:
            loss = closure()
            if before.gradient is None:  # later passes are at other weights
                before.keep_gradient()
            return loss

        return (args[0], watched, *args[2:]), {name: v for name, v in kwargs.items() if name != "closure"}

    def _fresh_gradients(self, parameters: Sequence[Tensor]) -> tuple[list[DomainGradient], DomainGradient | None]:
        device = parameters[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # loaders draw from torch's generators
            batches = list(self.fresh(self.step))
            if not batches:
                raise ValueError(f"fresh gave no batch at step {self.step}")
            if self.unseen is not None:
                batches.append(self.unseen(self.step))

        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            return self.loss(self.model(inputs), targets)

        losses = [partial(loss, inputs, targets) for inputs, targets in batches]
        with evaluation_mode(self.model), evaluated_domains(parameters, losses, 0, self.step) as evaluate:
            gradients = [evaluate(domain) for domain in range(len(batches))]
        return (gradients, None) if self.unseen is None else (gradients[:-1], gradients[-1])

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before, self._pending = self._pending, None
        if before is None:
            return
        parameters = list(before.trained.values())
        update = [
            at_least_float32(old) - at_least_float32(new) for old, new in zip(before.weights, parameters, strict=True)
        ]
        record: dict[str, float] = {"step": self.step}
        if "osgr" in self.track:
            if before.gradient is None:
                raise RuntimeError(f"{type(optimizer).__name__} was given a closure but did not call it")
            fresh = _mean(before.fresh, parameters)
            unseen = None if before.unseen is None else _mean([before.unseen], parameters)
            found = step_contributions(update, before.gradient, before.preconditioner, fresh, unseen)
            self.contributions.append(found)
            record |= {f"osgr/{name}": value for name, value in found._asdict().items() if value is not None}
        if "balance" in self.track:
            by_name = dict(zip(before.trained, update, strict=True))
            if sum(p.numel() for p in parameters) > 1:
                numbers = UpdateBalance(before.trained).numbers(update)
                record |= {f"balance/{name}": value for name, value in numbers._asdict().items()}
            sampled = [by_name[name] if name in by_name else torch.zeros_like(p) for name, p in self._sampled.items()]
            self.magnitudes.append(self.balance.sampled(sampled))
        if "agreement" in self.track and len(before.fresh) > 1:
            agreement = agreement_of(list(before.trained), [gradient.parts for gradient in before.fresh])
            self.agreements.append(agreement)
            record |= {"agreement/least": agreement.least, "agreement/mean": agreement.mean}
        self.records.append(record)
        if self.writer is not None:
            for name, value in record.items():
                if name != "step":
                    self.writer.add_scalar(name, value, self.step)


class _Before:
    """The state before a step, against which the step is measured.

    Args:
        trained: the parameters to measure, by name.
    """

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self.trained = trained
        self.weights = [p.detach().clone() for p in trained.values()]
        self.gradient: list[Tensor] | None = None
        self.preconditioner: list[Tensor] | None = None
        self.fresh: list[DomainGradient] = []
        self.unseen: DomainGradient | None = None

    def keep_gradient(self) -> None:
        check_dense(p.grad for p in self.trained.values())
        self.gradient = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.trained.values()
        ]


def _in_order(optimizer: Optimizer, factors: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
    """Pick from the factors of all of an optimizer's parameters those of the named ones, in their order."""
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    by_parameter = {id(p): factor for p, factor in zip(owned, factors, strict=True)}
    return [by_parameter[id(p)] for p in named.values()]


def _mean(gradients: Sequence[DomainGradient], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of the domains' gradients, in at least float32."""
    total = [at_least_float32(torch.zeros_like(p)) for p in parameters]
    for gradient in gradients:
        for t, part in zip(total, gradient.parts, strict=True):
            if part is not None:
                t.add_(part, alpha=1 / len(gradients))
    return total
