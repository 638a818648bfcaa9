"""What a domain data set is: images and labels, domain by domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shiftproof.registry import Registry, UnknownNameError

Kind = Literal["photographs", "small_images"]
KINDS: tuple[Kind, ...] = ("photographs", "small_images")


@dataclass(frozen=True)
class Domain:
    """The images of one domain.

    Attributes:
        name: unique within the data set.
        images: uint8, shape (n, channels, height, width); may be memory-mapped.
        labels: int64, shape (n,), indices into the data set's classes.
        groups: int64, shape (n,): images of equal number show the same thing (drawings of one photograph) and
            stay on one side of a grouped split; None where nothing is known.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DomainDataset:
    """A data set made of domains that share their classes.

    Attributes:
        name: its name in tables.
        domains: in the benchmark's order, which the splits depend on.
        classes: class names; a label is an index into them.
        kind: "photographs" are cropped, flipped and changed in colour in training; "small_images" (digits,
            characters, spectrograms) are taken as they are. Batch sizes and the steps between evaluations go by it too.
        fingerprint: changes whenever the images or labels do.
        root: the folder of its domains, None for an embedded set.
    """

    name: str
    domains: tuple[Domain, ...]
    classes: tuple[str, ...]
    kind: Kind
    fingerprint: str
    root: Path | None = None

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.domains[0].images.shape[1:]
        return channels, height, width

    def domain_index(self, name: str) -> int:
        """Return the position of a domain.

        Raises:
            UnknownNameError: there is no domain of that name.
        """
        if name not in self.domain_names:
            raise UnknownNameError(f"domain of {self.name}", name, list(self.domain_names))
        return self.domain_names.index(name)


class DatasetNotFoundError(ValueError):
    """There is no such data set where it was looked for."""


@dataclass(frozen=True)
class Outline:
    """What is published of a data set: enough to plan runs on it where it is not at hand.

    Attributes:
        domains: their names, in order.
        classes: number of classes.
        images: number of images of all domains.
    """

    domains: tuple[str, ...]
    classes: int
    images: int


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that can be opened by name.

    Attributes:
        open: called with the data folder (None for an embedded set) and the side to which images are resized
            (None: the set's own); a folder of one's own also with the kind of its images.
        kind: as in `DomainDataset`; None for a folder of one's own, whose files tell or the user.
        outline: of a published data set.
        embedded: whether it needs no data folder.
        model: name of the model that is taken for it where none is given; None for what goes by the kind.

    ``open`` raises `DatasetNotFoundError` where there is none.
    """

    open: Callable[..., DomainDataset]
    kind: Kind | None
    outline: Outline | None = None
    embedded: bool = False
    model: str | None = None


DATASETS: Registry[DatasetEntry] = Registry("data set")
