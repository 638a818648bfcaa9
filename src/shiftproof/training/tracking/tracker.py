"""What a tracker of experiments is, and the run that it is opened for."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from shiftproof.protocol import training_domain_validation
from shiftproof.training.spec import RunSpec

PROJECT = "shiftproof"
"""What trackers that group runs call the group, if they are not set up for another."""
LONGEST_TITLE = 128
"""Characters that W&B takes; databases of MLflow take 250."""
LONGEST_PART = 100
"""Characters of a domain in the name of a metric: MLflow takes 250 in all."""


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
        """What it is called beside others, in at most `LONGEST_TITLE` characters."""
        end = f", {self.spec.numbers}"  # the names before it may be cut
        return encodable(self.spec.label()).removesuffix(end)[: LONGEST_TITLE - len(end)] + end

    @property
    def labels(self) -> dict[str, str]:
        """Its tags."""
        return {name: encodable(text) for name, text in self.tags.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """Its spec by flat names: hyperparameters by "axis.name", the targets joined by "+"."""
        facts = asdict(self.spec)
        hparams: dict[str, Any] = facts.pop("hparams")
        return {**facts, "targets": encodable("+".join(self.spec.targets)), **hparams}

    def scalars(self, record: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of an evaluation by name.

        They are ``loss``, ``validation`` and ``accuracy/<domain>/<part>``, the domain by its name of `plain_names`;
        those of averaged weights are in a group of their own, ``averaged``.
        """
        names = plain_names(record["domains"])
        scalars = {"loss": record["loss"], "validation": training_domain_validation(record, self.spec.targets)}
        for domain, parts in record["domains"].items():
            for part, score in parts.items():
                scalars[f"accuracy/{names[domain]}/{part}"] = score["accuracy"]
        group = "averaged/" if "averaged" in record else ""
        return {group + name: value for name, value in scalars.items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return names that every tracker takes as one part of a metric's name, by the names that they stand for.

    They are of letters, digits, ".", "-", "_" and spaces, others replaced by "_", and not longer than `LONGEST_PART`
    before what may follow. Names that this makes equal, also where case or spaces do not count, end in a hash of their
    own.
    """
    plain = {name: _plain(name) for name in names}
    counts = Counter(map(_compared, plain.values()))
    return {name: short if counts[_compared(short)] == 1 else f"{short}-{_hash(name)}" for name, short in plain.items()}


def _plain(name: str) -> str:
    short = re.sub(r"[^\w. -]", "_", name[:LONGEST_PART])
    return short if short.strip(".") else "_" * max(1, len(short))  # "." and ".." are no names of files


def _compared(plain: str) -> str:
    return plain.replace(" ", "_").casefold()  # TensorBoard writes spaces so


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]


def encodable(text: str) -> str:
    """Return a text in which bytes that were no text, as in the name of a folder, are escapes."""
    return text.encode(errors="backslashreplace").decode()


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
