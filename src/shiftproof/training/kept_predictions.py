"""The predictions that a run keeps: a network's outputs for the rows that it was scored on, step by step."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import Task
from shiftproof.base.files import DamagedFileError, write_bytes
from shiftproof.data import DomainDataset
from shiftproof.training.inputs import Inputs, Part

PREDICTIONS_FILE = "predictions.npz"
"""The predictions that a run keeps."""
PREDICTIONS_BYTES = 16 * 2**20
"""Outputs that a run keeps at most, in bytes."""
_OUTPUTS = "outputs_"

PartOutputs = Mapping[tuple[int, Part], NDArray[Any]]
"""A network's outputs by a domain's index and part: (rows, classes), or in regression (rows,)."""


class Scored(NamedTuple):
    """One part of a domain, as it was scored.

    Attributes:
        outputs: as in `KeptPredictions`.
        targets: as in `Domain`.
    """

    outputs: NDArray[Any]
    targets: NDArray[Any]


@dataclass(frozen=True)
class KeptPredictions:
    """What a run's network put out at the steps that were kept, for n rows of the data set.

    Attributes:
        task: what is predicted.
        classes: names of the outputs, as in `DomainDataset`.
        domains: names of the data set's domains.
        domain: int32, shape (n,): index of each row's domain.
        row: int64, shape (n,): index of each row in its domain.
        held_out: bool, shape (n,): whether the row is of its domain's held-out part. All other rows are of targets.
        targets: what is right, as in `Domain`.
        outputs: by step, logits (n, classes) in float16, or in regression values (n,) in float32.
        ids: texts, shape (n,): what names each row, as in `Domain`; None if nothing does.
    """

    task: Task
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    domain: NDArray[np.int32]
    row: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    targets: NDArray[Any]
    outputs: dict[int, NDArray[Any]]
    ids: NDArray[np.str_] | None = None

    def part(self, step: int, domain: str, part: Part) -> Scored:
        """Return the rows of one part of a domain; none if it was not scored.

        Raises:
            KeyError: the step was not kept.
            ValueError: there is no such domain.
        """
        where = (self.domain == self.domains.index(domain)) & (self.held_out == (part == "out"))
        return Scored(self.outputs[step][where], self.targets[where])


def write_kept(folder: Path, dataset: DomainDataset, inputs: Inputs, steps: Mapping[int, PartOutputs]) -> None:
    """Write the outputs of some steps into a run's folder, with the rows that they belong to.

    Args:
        folder: the run's folder.
        dataset: the data set.
        inputs: the run's inputs, which know the rows of a part.
        steps: the outputs by step, all of the same parts.
    """
    parts = sorted(next(iter(steps.values())))
    rows = [inputs.rows(*key) for key in parts]
    lengths = list(map(len, rows))
    targets = [dataset.domains[domain].targets[of] for (domain, _), of in zip(parts, rows, strict=True)]
    arrays = {
        "task": np.array(dataset.task),
        "classes": np.array(dataset.classes),
        "domains": np.array(dataset.domain_names),
        "domain": np.repeat(np.array([domain for domain, _ in parts], dtype=np.int32), lengths),
        "row": np.concatenate(rows),
        "held_out": np.repeat(np.array([part == "out" for _, part in parts]), lengths),
        "targets": np.concatenate(targets),
    }
    ids = [
        one[of] for (domain, _), of in zip(parts, rows, strict=True) if (one := dataset.domains[domain].ids) is not None
    ]
    if len(ids) == len(parts):
        arrays["ids"] = np.concatenate(ids)
    for step, outputs in steps.items():
        arrays[f"{_OUTPUTS}{step}"] = np.concatenate([outputs[part] for part in parts])
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(folder / PREDICTIONS_FILE, content.getvalue())


def read_predictions(folder: Path) -> KeptPredictions | None:
    """Return the predictions that a run kept; None if it kept none.

    Args:
        folder: the run's folder.

    Raises:
        DamagedFileError: their file is incomplete or altered.
    """
    path = folder / PREDICTIONS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        outputs = {int(n.removeprefix(_OUTPUTS)): a for n, a in arrays.items() if n.startswith(_OUTPUTS)}
        kept = KeptPredictions(
            arrays["task"].item(),
            tuple(arrays["classes"].tolist()),
            tuple(arrays["domains"].tolist()),
            arrays["domain"],
            arrays["row"],
            arrays["held_out"],
            arrays["targets"],
            outputs,
            arrays.get("ids"),
        )
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        raise DamagedFileError(path, str(error).partition("\n")[0], "delete it; it is not made again") from error
    return kept
