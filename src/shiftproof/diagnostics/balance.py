"""Update balance: how evenly an optimizer's update is spread over the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.drawing import COLUMN, STYLE, method_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

SAMPLE = 4096
"""Number of elements that a heat map shows."""
FAINTEST = 1e-4
"""The lower end of a heat map's colours: smaller fractions of the largest update look like zero."""
HEAT_MAP_HEIGHT = 3.6
"""Height of a heat map in inches."""
NAME_SIZE = 5.5
NAME_SPACING = 0.035
"""The least distance of two tensors' names, as a share of a heat map's panel."""
COLOR_MAP = "viridis"  # perceptually even, also for colour-blind readers
_BLOCK = 1 << 20  # elements to convert to float64 at a time


class Balance(NamedTuple):
    r"""How evenly the magnitudes :math:`|u_1|, \dots, |u_n|` of an update are spread, over all its elements.

    Attributes:
        gini: the Gini coefficient :math:`\sum_{ij} \lvert |u_i| - |u_j| \rvert / (2 n \sum_i |u_i|)`: 0 if all are
            equal, 1 - 1/n if one element takes the whole update.
        entropy: :math:`-\sum_i p_i \log p_i / \log n` with :math:`p_i = |u_i| / \sum_k |u_k|`: 1 if all are equal, 0 if
            one element takes the whole update.
        top_share: share of the sum of magnitudes that the largest 1 % of elements hold, in [0.01, 1]. If n is not a
            multiple of 100, a fraction of one element counts.
        largest: the largest magnitude.

    The first three are NaN if the update is zero everywhere or not finite.
    """

    gini: float
    entropy: float
    top_share: float
    largest: float


class UpdateBalance:
    """Measures the balance of updates over all elements, and samples their magnitudes at some.

    The sampled elements are spaced evenly over the flattened parameters, so each tensor gets its proportional share of
    a picture. They are single elements and not averages, which would hide concentrated updates.

    Args:
        parameters: the parameters by name, in the order of the model.
        sample: number of elements to sample; all if there are fewer.

    Attributes:
        positions: positions of the sampled elements, ascending, (sampled,).
        layers: index in `positions` at which each sampled tensor begins, by its name.

    Raises:
        ValueError: there are fewer than two elements, or ``sample`` is below 2.
    """

    def __init__(self, parameters: Mapping[str, Tensor], sample: int = SAMPLE) -> None:
        self._shapes = [p.shape for p in parameters.values()]
        self._ends = np.cumsum([shape.numel() for shape in self._shapes], dtype=np.int64)
        self.size = int(self._ends[-1]) if parameters else 0
        if min(self.size, sample) < 2:
            raise ValueError(f"balance compares elements: it needs at least two, not {sample} of {self.size}")
        sampled = min(sample, self.size)
        places = np.arange(sampled, dtype=np.int64)
        self.positions = torch.from_numpy((2 * places + 1) * self.size // (2 * sampled))  # the middles of equal parts
        self._splits = [0, *np.searchsorted(self.positions.numpy(), self._ends).tolist()]
        begins = zip(parameters, self._splits, self._splits[1:], strict=False)
        self.layers = {name: first for name, first, last in begins if first < last}

    def numbers(self, update: Sequence[Tensor]) -> Balance:
        """Measure how evenly an update is spread.

        The result is exact: all magnitudes are sorted, and sums are in float64. This takes the memory of one copy of
        the parameters.

        Args:
            update: each parameter's value before the step minus its value after it.

        Raises:
            ValueError: shapes differ from the parameters'.
        """
        self._check(update)
        wide = any(part.dtype in (torch.float64, torch.complex128) for part in update)
        magnitudes: NDArray[np.floating[Any]] = np.empty(self.size, dtype=np.float64 if wide else np.float32)
        into = torch.from_numpy(magnitudes)
        for part, end in zip(update, self._ends.tolist(), strict=True):
            into[end - part.numel() : end] = part.detach().abs().flatten()
        return balance(magnitudes)

    def sampled(self, update: Sequence[Tensor]) -> Tensor:
        """Return the magnitudes of an update at `positions`, (sampled,) on the CPU, float32.

        Args:
            update: each parameter's value before the step minus its value after it.

        Raises:
            ValueError: shapes differ from the parameters'.
        """
        self._check(update)
        found = []
        for i, part in enumerate(update):
            places = self.positions[self._splits[i] : self._splits[i + 1]] - int(self._ends[i]) + part.numel()
            found.append(part.detach().flatten()[places.to(part.device)].abs().float().cpu())
        return torch.cat(found)

    def _check(self, update: Sequence[Tensor]) -> None:
        shapes = [part.shape for part in update]
        if shapes != self._shapes:
            given, expected = ([tuple(shape) for shape in of] for of in (shapes, self._shapes))
            raise ValueError(f"the update has the shapes {given}; the parameters have {expected}")


def balance(magnitudes: NDArray[np.floating[Any]]) -> Balance:
    """Measure how evenly magnitudes (n,) are spread; this sorts them in place.

    Raises:
        ValueError: there are fewer than two.

    Examples:
        >>> import numpy as np
        >>> from shiftproof.diagnostics import balance
        >>> round(balance(np.ones(100)).gini, 3), round(balance(np.ones(100)).entropy, 3)  # all parameters alike
        (0.0, 1.0)
        >>> round(balance(np.eye(1, 100)[0]).gini, 3)  # one of a hundred moves
        0.99
    """
    n = len(magnitudes)
    if n < 2:
        raise ValueError(f"balance compares elements: it needs at least two, not {n}")
    magnitudes.sort()  # NumPy's sort returns no indices, and so is 30 times as fast as torch's on a CPU
    largest = float(magnitudes[-1])  # NaN is sorted last
    total = math.fsum(block.sum() for _, block in _blocks(magnitudes))
    if not 0 < total < math.inf:
        return Balance(math.nan, math.nan, math.nan, largest)
    ranked = entropy = 0.0
    for start, block in _blocks(magnitudes):
        shares = block / total
        ranked += float(shares @ np.arange(start + 1, start + len(block) + 1, dtype=np.float64))
        entropy -= float(shares @ np.log(shares, out=np.zeros_like(shares), where=shares > 0))
    whole, part = divmod(n, 100)
    top = math.fsum(block.sum() for _, block in _blocks(magnitudes[n - whole :]))
    top += float(magnitudes[n - whole - 1]) * part / 100
    return Balance(2 * ranked / n - (n + 1) / n, entropy / math.log(n), top / total, largest)


def _blocks(values: NDArray[np.floating[Any]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Cut values into float64 blocks, and yield each with the index of its start."""
    for start in range(0, len(values), _BLOCK):
        yield start, values[start : start + _BLOCK].astype(np.float64)


@dataclass(frozen=True)
class BalanceHistory:
    """The balance of one optimizer's updates in the course of training.

    Attributes:
        steps: the steps measured, ascending.
        numbers: the balance of each step.
        magnitudes: magnitudes of each step at the same sampled elements, each (sampled,).
        layers: index at which each parameter tensor begins in these, by name; see `UpdateBalance`.
    """

    steps: Sequence[int]
    numbers: Sequence[Balance]
    magnitudes: Sequence[Tensor]
    layers: Mapping[str, int]

    def mean(self) -> Balance:
        """Return the mean of each number over the steps at which it is defined."""
        values = np.array(self.numbers, dtype=np.float64)
        defined = np.isfinite(values)
        sums, counts = np.where(defined, values, 0.0).sum(0), defined.sum(0)
        return Balance(*(float(s / c) if c else math.nan for s, c in zip(sums, counts, strict=True)))


BALANCE_HEADER = ("optimizer", "step", *Balance._fields)
"""The columns of `balance_rows`."""


def balance_rows(histories: Mapping[str, BalanceHistory]) -> list[tuple[Any, ...]]:
    """Return the numbers behind the figures, one row per optimizer and step, with columns as in `BALANCE_HEADER`."""
    return [
        (name, step, *numbers)
        for name, history in histories.items()
        for step, numbers in zip(history.steps, history.numbers, strict=True)
    ]


def heat_map(histories: Mapping[str, BalanceHistory]) -> Figure:
    """Draw the magnitude of every sampled element's update over training, one panel per optimizer.

    Each step's magnitudes are divided by the step's largest over all elements. Colours are logarithmic and equal in all
    panels: `FAINTEST` and below, including zero, have the darkest, and steps without an update are blank. Lines mark
    where parameter tensors begin; beside the first panel are the names of as many, the largest first, as there is room
    for, without the beginning that all share. Below each panel are the means of the three numbers over the steps.

    Args:
        histories: histories by optimizer, all for the same model.

    Raises:
        ValueError: there is no history, or one has no measured step.
    """
    _check_histories(histories)
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, HEAT_MAP_HEIGHT), layout="constrained")
        figure.suptitle("Magnitude of the update of every parameter over training")
        panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
        norm = LogNorm(FAINTEST, 1.0)
        for axes, (name, history) in zip(panels, histories.items(), strict=True):
            _draw_magnitudes(axes, history, norm)
            mean = history.mean()
            axes.set_title(name)
            axes.set_xlabel(
                f"step\n\nGini {mean.gini:.2f}\nentropy {mean.entropy:.2f}\ntop 1 % hold {100 * mean.top_share:.1f} %",
                fontsize=6.5,
            )
        first = next(iter(histories.values()))
        named = _named_tensors(first.layers, len(first.magnitudes[0]))
        panels[0].set_yticks(list(named.values()), list(named), fontsize=NAME_SIZE)
        panels[0].set_ylabel("parameter, evenly sampled")
        bar = figure.colorbar(ScalarMappable(norm, COLOR_MAP), ax=panels, extend="min", pad=0.02, aspect=30)
        bar.set_label("update / largest of its step")
        bar.ax.grid(visible=False)
        return figure


def _named_tensors(layers: Mapping[str, int], sampled: int) -> dict[str, float]:
    """Return the middles of the tensors that have room for a name, the largest first, by their shortened names."""
    ends = [*list(layers.values())[1:], sampled]
    sizes = {name: end - first for (name, first), end in zip(layers.items(), ends, strict=True)}
    parts = [name.split(".") for name in layers]
    shared = 0  # parts that all names begin with, such as "network", but for the last
    while all(len(of) > shared + 1 and of[shared] == parts[0][shared] for of in parts):
        shared += 1
    room = sampled * NAME_SPACING
    named: dict[str, float] = {}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        middle = layers[name] + sizes[name] / 2
        if all(abs(middle - other) >= room for other in named.values()):
            named[".".join(name.split(".")[shared:])] = middle
    return named


def _draw_magnitudes(axes: Axes, history: BalanceHistory, norm: Normalize) -> None:
    magnitudes = torch.stack(list(history.magnitudes)).double().numpy()
    largest = np.array([numbers.largest for numbers in history.numbers])[:, None]
    relative = np.full_like(magnitudes, np.nan)
    np.divide(magnitudes, largest, out=relative, where=(largest > 0) & np.isfinite(largest))
    steps = np.asarray(history.steps, dtype=np.float64)
    gaps = np.diff(steps) if len(steps) > 1 else np.ones(1)
    middles = (steps[1:] + steps[:-1]) / 2
    edges = np.array([steps[0] - gaps[0] / 2, *middles, steps[-1] + gaps[-1] / 2])
    # draws an image even if steps are unevenly spaced; each pixel shows one element, not the mean of several
    axes.pcolorfast(edges, np.arange(magnitudes.shape[1] + 1), relative.clip(FAINTEST).T, norm=norm, cmap=COLOR_MAP)
    for first in history.layers.values():
        axes.axhline(first, color="white", linewidth=0.3, alpha=0.5)
    axes.set_ylim(magnitudes.shape[1], 0)  # the first layer on top
    axes.grid(visible=False)


def balance_curves(histories: Mapping[str, BalanceHistory]) -> Figure:
    """Draw the three numbers over the steps, one panel each, with one line per optimizer.

    Raises:
        ValueError: there is no history, or one has no measured step.
    """
    _check_histories(histories)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    labels = {"gini": "Gini coefficient", "entropy": "normalised entropy", "top_share": "share of the top 1 %"}
    styles = method_styles(list(histories))
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
        figure.suptitle("Balance of the updates over training")
        for axes, (field, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
            for (name, history), (color, dashes) in zip(histories.items(), styles, strict=True):
                values = [getattr(numbers, field) for numbers in history.numbers]
                style = (0, dashes) if dashes else "-"
                marker = "o" if len(values) == 1 else ""
                axes.plot(history.steps, values, color=color, linestyle=style, marker=marker, label=name)
            axes.set(title=label, xlabel="step", ylim=(-0.02, 1.02))
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)))
        return figure


def _check_histories(histories: Mapping[str, BalanceHistory]) -> None:
    for name, history in histories.items():
        if not history.steps:
            raise ValueError(f"no step of {name} was measured")
    if not histories:
        raise ValueError("there is no optimizer to draw")
