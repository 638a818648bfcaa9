"""The form of a domain data set: images and labels, domain by domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import KINDS, Kind
from shiftproof.base.field_error import FieldError
from shiftproof.base.registry import Registry, UnknownNameError, check_callable


@dataclass(frozen=True)
class Domain:
    """The images of one domain.

    Attributes:
        name: unique within the data set.
        images: uint8, shape (n, channels, height, width); may be memory-mapped.
        labels: int64, shape (n,), indices into the data set's classes.
        groups: int64, shape (n,): images with the same number show the same thing (drawings of one photograph) and
            stay on one side of a grouped split; None if no groups are known.

    Raises:
        ValueError: an array has the wrong type or shape; the message says how to convert it.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check_images(self)
        _check_numbers(self, "labels", self.labels)
        if self.groups is not None:
            _check_numbers(self, "groups", self.groups)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DomainDataset:
    """A data set made of domains that share their classes.

    Attributes:
        name: its name in tables.
        domains: the domains in the benchmark's order, which the splits depend on.
        classes: class names; a label is an index into them.
        kind: "photographs", of shape (3, side, side), are cropped, flipped and changed in colour in training, and
            "small_images" (digits, characters, spectrograms) are used as they are. Defaults of batch size and
            evaluations depend on it too.
        fingerprint: changes whenever the images or labels do.
        root: the folder of its domains; None for an embedded data set.

    Raises:
        ValueError: domains do not fit together, a label is not a class, there are fewer than two classes, a name is not
            a str, or the kind is unknown or does not go with the images' shape. Images are not read.
    """

    name: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    kind: Kind
    fingerprint: str
    root: Path | None = None

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
        for name in (self.name, *self.domain_names, *self.classes):
            if not isinstance(name, str):
                raise ValueError(f"the name {name!r} must be a str, not {type(name).__name__}: str(name)")  # noqa: TRY004
            if printable(name) != name:
                raise ValueError(f"the name {printable(name)} is not valid text; rename it")
        check_domain_names(self.domain_names)
        if len(self.classes) < 2:
            raise ValueError(
                f"it has {len(self.classes)} class(es); with fewer than two there is nothing to tell apart"
            )
        if repeated := _repeated(self.classes):
            raise ValueError(f"class {repeated} is named twice; give every class its own name")
        shape = self.domains[0].images.shape[1:]
        for domain in self.domains:
            if domain.images.shape[1:] != shape:
                raise ValueError(
                    f"images of domain {domain.name} have shape {domain.images.shape[1:]}, those of "
                    f"{self.domains[0].name} {shape}; resize them to one shape (channels, height, width)"
                )
            if self.kind == "photographs" and (shape[0] != 3 or shape[1] != shape[2]):
                raise ValueError(
                    f"its images have shape {shape}, and photographs must have (3, side, side): resize them to "
                    "squares, for grey ones images.repeat(3, axis=1); or make their kind small_images"
                )
            least, greatest = int(domain.labels.min()), int(domain.labels.max())
            if least < 0 or greatest >= len(self.classes):
                raise ValueError(
                    f"labels of domain {domain.name} are from {least} to {greatest}, but {len(self.classes)} classes "
                    f"have labels from 0 to {len(self.classes) - 1}; give every label its class, or count from 0"
                )

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (channels, height, width) of every image."""
        channels, height, width = self.domains[0].images.shape[1:]
        return channels, height, width

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


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _check_images(domain: Domain) -> None:
    images, whose = domain.images, f"images of domain {domain.name}"
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{whose} must be a numpy array, not {type(images).__name__}")  # noqa: TRY004
    if images.dtype != np.uint8:
        remedy = {
            "f": "for values in [0, 1], (images * 255).round().astype(np.uint8)",
            "b": "images.astype(np.uint8) * 255",
        }.get(images.dtype.kind, "for values from 0 to 255, images.astype(np.uint8)")
        raise ValueError(f"{whose} must be uint8 from 0 to 255, not {images.dtype}: {remedy}")
    if images.ndim != 4:
        remedy = ": images[:, None] for grey ones" if images.ndim == 3 else ""
        raise ValueError(f"{whose} must have shape (n, channels, height, width), not {images.shape}{remedy}")
    if not len(images):
        raise ValueError(f"domain {domain.name} has no images; leave it out")
    channels, height, width = images.shape[1:]
    if not images.size:
        raise ValueError(f"{whose} have shape {images.shape[1:]}, which holds no pixels")
    if min(channels, height) > 4 >= width:
        raise ValueError(
            f"{whose} have shape {images.shape}, which looks like (n, height, width, channels): "
            "images.transpose(0, 3, 1, 2)"
        )


def _check_numbers(domain: Domain, name: str, values: object) -> None:
    whose = f"{name} of domain {domain.name}"
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{whose} must be a numpy array, not {type(values).__name__}")  # noqa: TRY004
    if values.dtype != np.int64:
        raise ValueError(
            f"{whose} must be int64, not {values.dtype}: {name}.astype(np.int64), if they are whole numbers"
        )
    if values.shape != (len(domain.images),):
        raise ValueError(f"{whose} must have shape ({len(domain.images)},), one per image, not {values.shape}")


class DataFolderError(FieldError):
    """The folder of a data set cannot be used, because of what it holds or lacks."""

    def __init__(self, message: str) -> None:
        super().__init__("data_dir", message)


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
            `DatasetNotFoundError` if there is no data set.
        kind: as in `DomainDataset`; None for a user's folder, whose kind is stated or inferred.
        outline: the outline of a published data set.
        embedded: whether it needs no data folder.
        model: name of its default model; None if that depends on the kind.

    Raises:
        ValueError: a field is not as described here.
    """

    open: Callable[..., DomainDataset]
    kind: Kind | None
    outline: Outline | None = None
    embedded: bool = False
    model: str | None = None

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
