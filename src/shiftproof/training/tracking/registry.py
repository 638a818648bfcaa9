"""The trackers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shiftproof.base.extras import require
from shiftproof.base.registry import Registry, check_callable
from shiftproof.training.tracking.mlflow import MLflowTracker
from shiftproof.training.tracking.tensorboard import TensorBoardTracker
from shiftproof.training.tracking.tracker import TrackedRun, Tracker
from shiftproof.training.tracking.wandb import WandbTracker


@dataclass(frozen=True)
class TrackerEntry:
    """One tracker.

    Attributes:
        title: its name in messages.
        modules: modules that it needs to import; an extra with the tracker's name installs them.
        open: opens it for a run.

    Raises:
        ValueError: a field is not as described here.
    """

    title: str
    modules: tuple[str, ...]
    open: Callable[[TrackedRun], Tracker]

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise ValueError(f"title of TrackerEntry must be a text, not {self.title!r}")  # noqa: TRY004
        if not isinstance(self.modules, tuple) or not all(isinstance(name, str) for name in self.modules):
            raise ValueError(
                f'modules of TrackerEntry must be a tuple of names, as in ("wandb",), not {self.modules!r}'
            )
        check_callable("open of TrackerEntry", self.open, 1)

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.open


TRACKERS: Registry[TrackerEntry] = Registry("tracker", instances_of=TrackerEntry)
"""All trackers by name: `TRACKERS.register(name, entry)` adds one."""
TRACKERS.register("tensorboard", TrackerEntry("TensorBoard", ("torch.utils.tensorboard",), TensorBoardTracker))
TRACKERS.register("mlflow", TrackerEntry("MLflow", ("mlflow", "sqlalchemy", "alembic"), MLflowTracker))
TRACKERS.register("wandb", TrackerEntry("W&B", ("wandb",), WandbTracker))


def check_trackers(names: Iterable[str]) -> None:
    """Check that trackers can be used.

    Args:
        names: the names of the trackers.

    Raises:
        ValueError: a tracker is unknown or not installed.
    """
    for name in names:
        entry = TRACKERS[name]
        for module in entry.modules:
            require(module, name, entry.title)
