"""The form of a domain data set: inputs and targets, domain by domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import KINDS, TASKS, Kind, Task
from shiftproof.base.field_error import FieldError
from shiftproof.base.registry import Registry, UnknownNameError, check_callable
from shiftproof.data.class_vectors import ClassVectors
from shiftproof.data.columns import Column
from shiftproof.data.domain import Domain


@dataclass(frozen=True)
class DomainDataset:
    """A data set made of domains that share their targets' meaning.

    Attributes:
        name: its name in tables.
        domains: the domains in the benchmark's order, which the splits depend on.
        classes: classification: class names; a target is an index into them. Multilabel: names of the labels.
            Regression: the name of the quantity, alone. A network has an output for each.
        kind: "photographs", of shape (3, side, side), are cropped, flipped and changed in colour in training;
            "small_images" (digits, characters, spectrograms) are used as they are; "vectors" are arrays of float32.
            Defaults of batch size and evaluations depend on it too.
        fingerprint: changes whenever the inputs or targets do.
        root: the folder of its domains; None for an embedded data set.
        task: "classification", "multilabel" or "regression".
        columns: what the columns of vectors are; None for numbers without names.
        left_out: number of rows of its table that lack a label and were left out.
        encoder: what computed its vectors from pictures, in words; empty if nothing did.
        class_vectors: given vectors of its classes, in their order; None if the classifier is trained.

    Raises:
        ValueError: domains do not fit together, a target has no meaning, there are fewer than two classes, a name is
            not a str, or the kind is unknown or does not go with the inputs. Pictures are not read.
    """

    name: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    kind: Kind
    fingerprint: str
    root: Path | None = None
    task: Task = "classification"
    columns: tuple[Column, ...] | None = None
    left_out: int = 0
    encoder: str = ""
    class_vectors: ClassVectors | None = None

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"data set {printable(self.name)}: {error}") from error

    def _check(self) -> None:
        if not self.domains:
            raise ValueError("it has no domains")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be {' or '.join(KINDS)}, not {self.kind!r}")
        if self.task not in TASKS:
            raise ValueError(f"task must be {' or '.join(TASKS)}, not {self.task!r}")
        for name in (self.name, *self.domain_names, *self.classes):
            if not isinstance(name, str):
                raise ValueError(f"the name {name!r} must be a str, not {type(name).__name__}: str(name)")  # noqa: TRY004
            if printable(name) != name:
                raise ValueError(f"the name {printable(name)} is not valid text; rename it")
        check_domain_names(self.domain_names)
        self._check_classes()
        shape = self.input_shape
        for domain in self.domains:
            if domain.inputs.shape[1:] != shape:
                raise ValueError(
                    f"inputs of domain {domain.name} have shape {domain.inputs.shape[1:]}, those of "
                    f"{self.domains[0].name} {shape}; {_RESHAPE[self.kind == 'vectors']}"
                )
            if self.kind == "vectors":
                self._check_vectors(domain)
            else:
                self._check_pictures(domain)
            self._check_targets(domain)

    def _check_classes(self) -> None:
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError(
                f"it has {len(self.classes)} class(es); with fewer than two there is nothing to tell apart"
            )
        if self.task == "multilabel" and not self.classes:
            raise ValueError("it has no labels")
        if self.task == "regression" and len(self.classes) != 1:
            raise ValueError(
                f"it names {len(self.classes)} quantities; a regression is of one, as in classes=('price',)"
            )
        if self.class_vectors is not None and (
            self.task != "classification" or self.class_vectors.classes != self.classes
        ):
            raise ValueError("its class vectors are not of its classes, in their order: class_vectors.of(classes)")
        if repeated := _repeated(self.classes):
            raise ValueError(f"class {repeated} is named twice; give every class its own name")

    def _check_pictures(self, domain: Domain) -> None:
        inputs, shape = domain.inputs, domain.inputs.shape[1:]
        if inputs.dtype != np.uint8:
            raise ValueError(
                f"inputs of domain {domain.name} must be uint8 from 0 to 255, not {inputs.dtype}: for values in "
                "[0, 1], (inputs * 255).round().astype(np.uint8); or make the kind vectors"
            )
        if self.kind == "photographs" and (shape[0] != 3 or shape[1] != shape[2]):
            raise ValueError(
                f"its pictures have shape {shape}, and photographs must have (3, side, side): resize them to "
                "squares, for grey ones inputs.repeat(3, axis=1); or make their kind small_images"
            )
        if self.columns is not None:
            raise ValueError("columns are of vectors, not of pictures")

    def _check_vectors(self, domain: Domain) -> None:
        inputs = domain.inputs
        if inputs.dtype != np.float32:
            raise ValueError(
                f"inputs of domain {domain.name} must be float32, not {inputs.dtype}: inputs.astype(np.float32); or "
                "make the kind small_images"
            )
        if self.columns is not None and inputs.shape[1:] != (len(self.columns),):
            raise ValueError(f"it names {len(self.columns)} columns, and its inputs have shape {inputs.shape[1:]}")
        if (place := _first_row(np.isinf, inputs)) is not None:
            row, *rest = place
            column = f"column {self.columns[rest[0]].name}" if self.columns else f"place {tuple(rest)}"
            raise ValueError(
                f"row {row} of domain {domain.name} is infinite in {column}; write NaN for a missing value"
            )
        if inputs.ndim > 2 and (place := _first_row(np.isnan, inputs)) is not None:
            raise ValueError(
                f"row {place[0]} of domain {domain.name} holds NaN; only vectors (n, size) may lack values"
            )

    def _check_targets(self, domain: Domain) -> None:
        targets, whose = domain.targets, f"targets of domain {domain.name}"
        dtype, ndim = (np.float32, 1) if self.task == "regression" else (np.int64, 1 + (self.task == "multilabel"))
        if targets.dtype != dtype:
            raise ValueError(f"{whose} must be {dtype.__name__} for {self.task}, not {targets.dtype}")
        if self.task == "multilabel" and targets.shape[1:] != (len(self.classes),):
            raise ValueError(f"{whose} must have shape (n, {len(self.classes)}), one per label, not {targets.shape}")
        if targets.ndim != ndim:
            raise ValueError(f"{whose} must have shape ({len(targets)},), one per row, not {targets.shape}")
        if self.task == "regression":
            if (place := _first(~np.isfinite(targets))) is not None:
                raise ValueError(
                    f"row {place[0]} of domain {domain.name} has the target {targets[place]}; leave it out"
                )
            return
        least, greatest = int(targets.min()), int(targets.max())
        if self.task == "multilabel" and not 0 <= least <= greatest <= 1:
            raise ValueError(f"{whose} are from {least} to {greatest}; write 1 where a label applies, else 0")
        if self.task == "classification" and (least < 0 or greatest >= len(self.classes)):
            raise ValueError(
                f"{whose} are from {least} to {greatest}, but {len(self.classes)} classes are numbered from 0 to "
                f"{len(self.classes) - 1}; give every target its class, or count from 0"
            )

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of every input: of pictures (channels, height, width)."""
        return tuple(self.domains[0].inputs.shape[1:])

    def domain_index(self, name: str) -> int:
        """Return the position of a domain.

        Raises:
            UnknownNameError: the domain is unknown.
        """
        if name not in self.domain_names:
            raise UnknownNameError(f"domain of {self.name}", name, list(self.domain_names))
        return self.domain_names.index(name)


def check_domain_names(names: Sequence[str]) -> None:
    """Check that names identify domains and the targets made of them.

    Targets that are left out together are written as `a+b`. No name may begin with another name and a plus sign, so
    that every such text stands for one set of domains.

    Raises:
        ValueError: names are equal, or a joined name could stand for two sets of domains.
    """
    if repeated := _repeated(names):
        raise ValueError(f"domain {repeated} is named twice; give every domain its own name")
    for name in names:
        for other in names:
            if other.startswith(f"{name}+"):
                raise ValueError(
                    f"domains {name} and {other} cannot be told apart in targets, which are joined by a plus sign; "
                    f"rename {other}"
                )


def printable(text: object) -> str:
    """Return a text or path as valid UTF-8: undecodable bytes, which names of files may have, are escaped."""
    return str(text).encode(errors="backslashreplace").decode()


_LOOKED_AT_ONCE = 1 << 26  # bytes
_RESHAPE = ("resize them to one shape (channels, height, width)", "give all the same features")


def _first(where: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """Return the first place where an array is true; None if it is nowhere."""
    return tuple(int(i[0]) for i in where.nonzero()) if where.any() else None


def _first_row(wrong: Callable[[NDArray[Any]], NDArray[np.bool_]], rows: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the first place where something is wrong, looked for in blocks: rows may be more than memory holds."""
    size = max(1, _LOOKED_AT_ONCE * len(rows) // rows.nbytes)
    for start in range(0, len(rows), size):
        if (place := _first(wrong(rows[start : start + size]))) is not None:
            return start + place[0], *place[1:]
    return None


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


class DataFolderError(FieldError):
    """The folder of a data set cannot be used, because of what it holds or lacks."""

    def __init__(self, message: str) -> None:
        super().__init__("data_dir", message)


def refuse_folder(name: str, data_dir: Path | None) -> None:
    """Raise `FieldError` if a folder is given for an embedded data set."""
    if data_dir is not None:
        raise FieldError("data_dir", f"{name} is embedded: it takes no data folder (got {data_dir})")


class DatasetNotFoundError(DataFolderError):
    """A data set is not in the folder where it was looked for."""


@dataclass(frozen=True)
class Outline:
    """The published facts of a data set that suffice to plan runs when it is not at hand.

    Attributes:
        domains: names of the domains, in order.
        classes: number of classes.
        images: number of images in all domains.
    """

    domains: tuple[str, ...]
    classes: int
    images: int


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that can be opened by name.

    Attributes:
        open: called with the data folder (None for an embedded data set) and the side to which images are resized
            (None for the data set's own), and for a user's folder also with the kind of its images. It raises
            `DatasetNotFoundError` if there is no data set. A user's table comes in place of the folder.
        kind: as in `DomainDataset`; None for a user's folder or table, whose kind is stated or inferred.
        outline: the outline of a published data set.
        embedded: whether it needs no data folder.
        model: name of its default model; None if that depends on the kind. A dialect of the protocol that has a model
            for small images of its size takes that.
        table: whether it is opened from a `TableFile`.

    Raises:
        ValueError: a field is not as described here.

    Examples:
        >>> from shiftproof.data import DATASETS
        >>> digits = DATASETS["rotated_digits"].open(None, None)
        >>> digits.kind, [domain.name for domain in digits.domains]
        ('small_images', ['0', '15', '30', '45', '60', '75'])
    """

    open: Callable[..., DomainDataset]
    kind: Kind | None
    outline: Outline | None = None
    embedded: bool = False
    model: str | None = None
    table: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind of DatasetEntry must be {' or '.join(KINDS)}, or None, not {self.kind!r}")
        if self.outline is not None and not isinstance(self.outline, Outline):
            raise ValueError(f"outline of DatasetEntry must be an Outline or None, not {self.outline!r}")
        if self.model is not None and not isinstance(self.model, str):
            raise ValueError(f"model of DatasetEntry must be the name of a model or None, not {self.model!r}")
        check_callable("open of DatasetEntry", self.open, 3 if self.kind is None else 2)

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.open


DATASETS: Registry[DatasetEntry] = Registry("data set", instances_of=DatasetEntry)
"""All data sets by name: `DATASETS.register(name, entry)` adds one."""
