"""What a tracker of experiments is, and the run that it is opened for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from shiftproof.training.evaluation import training_domain_validation
from shiftproof.training.spec import RunSpec

PROJECT = "shiftproof"
"""What trackers that group runs call the group, if they are not set up for another."""


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker needs it.

    Attributes:
        spec: what determines its result.
        folder: its own.
        shared: where trackers keep what all runs share, if they are not set up for another place.
        tags: what it is found by among others, beside its spec.
        kept: its evaluations so far, as its metrics hold them: none of a new run, those before its checkpoint of a
            continued one.
    """

    spec: RunSpec
    folder: Path
    shared: Path
    tags: Mapping[str, str]
    kept: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """What it is called beside others."""
        spec = self.spec
        parts = (spec.algorithm, spec.optimizer, spec.annealer, spec.variant)
        method = " + ".join(part for part in parts if part not in ("none", ""))
        return f"{method} on {'+'.join(spec.targets)}, trial {spec.trial_seed}, setting {spec.hparam_seed}"

    @property
    def parameters(self) -> dict[str, Any]:
        """Its spec by flat names: hyperparameters by "axis.name", the targets joined by "+"."""
        facts = asdict(self.spec)
        hparams: dict[str, Any] = facts.pop("hparams")
        return {**facts, "targets": "+".join(self.spec.targets), **hparams}

    def scalars(self, record: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of an evaluation by name.

        They are ``loss``, ``validation`` and ``accuracy/<domain>/<part>``; those of averaged weights are in a group of
        their own, ``averaged``.
        """
        scalars = {"loss": record["loss"], "validation": training_domain_validation(record, self.spec.targets)}
        for domain, parts in record["domains"].items():
            for part, score in parts.items():
                scalars[f"accuracy/{domain}/{part}"] = score["accuracy"]
        group = "averaged/" if "averaged" in record else ""
        return {group + name: value for name, value in scalars.items()}


class Tracker(Protocol):
    """Keeps the curve of one run; opened with its `TrackedRun`, of which every evaluation kept is written first."""

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write an evaluation, lastingly, unless it is there: a run that was killed may come to it again.

        Args:
            scalars: its numbers by name.
            step: the step that it was made after; evaluations come in order.
        """

    def end(self, status: str) -> None:
        """Write that the run has ended, "finished" or "failed"."""

    def close(self) -> None:
        """Let go of files and connections."""
