"""The interface of an experiment tracker, and the run that it is opened for."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from shiftproof.protocol import measured, training_domain_validation
from shiftproof.training.spec import RunSpec

PROJECT = "shiftproof"
"""Default name of the group, in trackers that group runs."""
LONGEST_TITLE = 128
"""Most characters that W&B allows in a run's title; databases of MLflow allow 250."""
LONGEST_PART = 100
"""Most characters of a domain in the name of a metric: MLflow allows 250 in all."""


@dataclass(frozen=True)
class TrackedRun:
    """A run with everything that a tracker needs to know of it.

    Attributes:
        spec: the run's spec.
        folder: the run's folder.
        shared: default folder for data that a tracker shares between runs.
        tags: labels that identify the run among others, in addition to its spec.
        kept: its evaluations so far, from its metrics: none for a new run, those before the checkpoint for a
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
        """Its tags as encodable text."""
        return {name: encodable(text) for name, text in self.tags.items()}

    @property
    def parameters(self) -> dict[str, Any]:
        """Its spec by flat names: hyperparameters by "axis.name", the targets joined by "+"."""
        facts = asdict(self.spec)
        hparams: dict[str, Any] = facts.pop("hparams")
        if plugins := facts.pop("plugins"):
            facts["plugins"] = ", ".join(f"{name} {digest[:8]}" for name, digest in plugins.items())
        return {**facts, "targets": encodable("+".join(self.spec.targets)), **hparams}

    def scalars(self, record: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of an evaluation by name.

        They are ``loss``, ``validation`` and ``<measure>/<domain>/<part>``, with the domain's name from `plain_names`;
        the measure is that by which the run's model is selected. One that is undefined is left out.
        Names for averaged weights begin with ``averaged/``.
        """
        names = plain_names(record["domains"])
        metric = self.spec.selecting_metric
        validation = training_domain_validation(record, self.spec.targets, metric)
        scalars = {"loss": record["loss"], "validation": validation}
        for domain, parts in record["domains"].items():
            for part, score in parts.items():
                scalars[f"{metric}/{names[domain]}/{part}"] = measured(score, metric)
        group = "averaged/" if "averaged" in record else ""
        return {group + name: value for name, value in scalars.items() if value is not None}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return names that every tracker accepts as one part of a metric's name, by the original names.

    Characters other than letters, digits, ".", "-", "_" and spaces become "_", and names are cut to `LONGEST_PART`
    characters. Names that are then equal, ignoring case and spaces, get a hash of the original appended.
    """
    plain = {name: _plain(name) for name in names}
    counts = Counter(map(_compared, plain.values()))
    return {name: short if counts[_compared(short)] == 1 else f"{short}-{_hash(name)}" for name, short in plain.items()}


def _plain(name: str) -> str:
    short = re.sub(r"[^\w. -]", "_", name[:LONGEST_PART])
    return short if short.strip(".") else "_" * max(1, len(short))  # "." and ".." cannot name files


def _compared(plain: str) -> str:
    return plain.replace(" ", "_").casefold()  # TensorBoard writes spaces as underscores


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]


def encodable(text: str) -> str:
    """Return a text whose undecodable bytes, which names of folders may have, are escaped."""
    return text.encode(errors="backslashreplace").decode()


class Tracker(Protocol):
    """Stores the curve of one run. It is opened with a `TrackedRun`, whose earlier evaluations are written first."""

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write an evaluation durably, unless it is there already, as after a run was killed and continued.

        Args:
            scalars: its numbers by name.
            step: the step that it follows; evaluations come in order.
        """

    def end(self, status: str) -> None:
        """Write that the run has ended, "finished" or "failed"."""

    def close(self) -> None:
        """Close files and connections."""
