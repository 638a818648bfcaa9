"""Folder data sets: `<root>/<domain>/<class>/<image>`, and the benchmark sets that come in this form."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.cache import cached_images, file_states
from shiftproof.data.dataset import DATASETS, DatasetEntry, DatasetNotFoundError, Domain, DomainDataset, Kind, Outline
from shiftproof.data.kinds import Look, look_at
from shiftproof.registry import UnknownNameError

IMAGE_SIZE = 224
_LAYOUT = "expected <root>/<domain>/<class>/<image>"
_DRAWING = re.compile(r"(n\d+_\d+)-\d+")  # PACS: the k-th drawing of one photograph


class FolderError(ValueError):
    """A folder that is missing or not laid out as a data set."""


class FolderNotFoundError(FolderError, DatasetNotFoundError):
    """There is no folder of the data set."""


class DomainFiles(NamedTuple):
    """The image files of one domain.

    Attributes:
        name: the domain's name.
        paths: the n files, by class, sorted by name within a class.
        labels: int64, shape (n,): index of each file's class.
    """

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]


def open_folder(data_dir: Path | None, image_size: int | None = None, kind: Kind | None = None) -> DomainDataset:
    """Open any tree of `<root>/<domain>/<class>/<image>`, in the order of DomainBed (torchvision's ImageFolder).

    Files beside the folders, hidden files and files without the suffix of an image are left out.

    Args:
        data_dir: the root; its name is the data set's.
        image_size: side to which images are resized, in pixels. None for 224 for photographs, and for small images
            their own up to 64.
        kind: of the images; None to go by a look at the files (see `look_at_folder`).

    Raises:
        FolderError: the folder is missing or empty, a class is empty, or classes differ between domains.
        UnreadableImagesError: files are damaged or no images.
        CacheError: the decoded images cannot be stored.
    """
    if data_dir is None:
        raise FolderError("a folder data set needs a data folder")
    root = _absolute(data_dir)
    classes, files = _domain_files(root)
    if kind is None:
        kind = _look(files).kind
    if image_size is None:
        image_size = IMAGE_SIZE if kind == "photographs" else _look(files).small_size
    return _dataset(root.name, root, classes, files, image_size, kind)


def look_at_folder(data_dir: Path | None) -> Look:
    """Guess the kind of the images of a folder data set from the sizes and channels of some of its files.

    They are small images if no side is longer than 64 pixels, or than 128 where all are grey; else photographs.

    Args:
        data_dir: the root.

    Raises:
        FolderError: as `open_folder`.
    """
    if data_dir is None:
        raise FolderError("a folder data set needs a data folder")
    return _look(_domain_files(_absolute(data_dir))[1])


def _look(files: Iterable[DomainFiles]) -> Look:
    return look_at([path for domain in files for path in domain.paths])


class FolderContents(NamedTuple):
    """What a folder data set holds.

    Attributes:
        root: the folder of its domains.
        name: of the published data set that it is compared with; None for any other.
        classes: class names; labels are indices into them.
        files: domain by domain.
        differences: from what is published, in words; empty where nothing is.
    """

    root: Path
    name: str | None
    classes: tuple[str, ...]
    files: tuple[DomainFiles, ...]
    differences: tuple[str, ...]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by domain and class."""
        return {
            domain.name: dict(
                zip(self.classes, np.bincount(domain.labels, minlength=len(self.classes)).tolist(), strict=True)
            )
            for domain in self.files
        }


def published_names() -> list[str]:
    """Return the names of the published folder data sets."""
    return [benchmark.name for benchmark in _BENCHMARKS]


def list_folder(data_dir: Path, name: str | None = None) -> FolderContents:
    """List the images of a folder data set and compare them with what is published; no image is read.

    Args:
        data_dir: the folder of the domains, or, where `name` is given, the one that holds it.
        name: of the published data set; None to go by the folder's name.

    Raises:
        FolderError: the folder is missing or empty, a class is empty, or classes differ between domains.
        UnknownNameError: there is no published folder data set of that name.
    """
    data_dir = _absolute(data_dir)
    published = {benchmark.name: benchmark for benchmark in _BENCHMARKS}
    if name is None:
        names = [one.name for one in _BENCHMARKS if data_dir.name in (one.name, one.folder)]
        name = names[0] if names else None
    elif name not in published:
        raise UnknownNameError("published folder data set", name, published_names())
    if name is None:
        classes, files = _domain_files(data_dir)
        return FolderContents(data_dir, None, classes, tuple(files), ())
    try:
        root = _benchmark_root(published[name], data_dir)
    except FolderNotFoundError:  # a folder of another name
        root = data_dir
    classes, files = _domain_files(root)
    return FolderContents(root, name, classes, tuple(files), tuple(_differences(published[name], classes, files)))


def labelled_images(root: Path, classes: Sequence[str]) -> tuple[DomainFiles, ...]:
    """List the images of a folder for a model that knows `classes`.

    Args:
        root: `<root>/<class>/<image>` (one domain, named like the folder) or `<root>/<domain>/<class>/<image>`.
        classes: the model's class names; labels are indices into them. The folder may hold fewer.

    Raises:
        FolderError: the folder is missing, holds no images, or has classes that the model does not know.
    """
    root = _absolute(root)
    folders = _subfolders(root)
    known, below = set(classes), {folder: set(_subfolders(root / folder)) for folder in folders}
    flat = (folders and known.issuperset(folders)) or (
        not any(known & names for names in below.values()) and any(_holds_images(root / folder) for folder in folders)
    )
    if flat:
        domains = {root.name: (root, folders)}
    else:
        domains = {folder: (root / folder, _subfolders(root / folder)) for folder in folders}
    unknown = sorted({name for _, names in domains.values() for name in names} - set(classes))
    if unknown:
        raise FolderError(
            f"{root}: the model does not know the classes {', '.join(unknown)}; it knows {', '.join(classes)}"
        )
    index = {name: label for label, name in enumerate(classes)}
    files = tuple(
        _files(name, folder, {name: index[name] for name in names}) for name, (folder, names) in domains.items()
    )
    empty = [domain.name for domain in files if not domain.paths]
    if empty or not files:
        raise FolderError(f"{root}: no images in {', '.join(empty) or 'it'}")
    return files


def _absolute(folder: Path) -> Path:
    """Return an absolute path whose last part is the name that the user knows: links are not followed."""
    return Path(os.path.abspath(folder.expanduser()))


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(name: str, folder: Path, class_to_label: dict[str, int]) -> DomainFiles:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    samples = make_dataset(folder, class_to_label, IMG_EXTENSIONS, allow_empty=True) if class_to_label else []
    kept = [(Path(path), label) for path, label in samples if not _hidden(Path(path).relative_to(folder).parts)]
    return DomainFiles(name, tuple(path for path, _ in kept), np.array([label for _, label in kept], np.int64))


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _holds_images(folder: Path) -> bool:
    from torchvision.datasets.folder import is_image_file

    with os.scandir(folder) as entries:
        return any(entry.is_file() and is_image_file(entry.name) and not _hidden([entry.name]) for entry in entries)


def _domain_files(root: Path) -> tuple[tuple[str, ...], list[DomainFiles]]:
    """Return the classes and the files of every domain, after checking the layout."""
    domains = {domain: _subfolders(root / domain) for domain in _subfolders(root)}
    if not domains:
        raise FolderError(f"{root}: no domain folders; {_LAYOUT}")
    for domain, names in domains.items():
        if not names:
            raise FolderError(f"{root / domain}: no class folders; {_LAYOUT}")
    classes = sorted(set().union(*domains.values()))
    lacking = [
        f"{domain} lacks {', '.join(missing)}"
        for domain, names in domains.items()
        if (missing := [name for name in classes if name not in names])
    ]
    if lacking:
        raise FolderError(f"{root}: classes differ between domains: {'; '.join(lacking)}")
    labels = {name: label for label, name in enumerate(classes)}
    files = [_files(domain, root / domain, labels) for domain in domains]
    empty = [
        str(root / domain.name / name)
        for domain in files
        for name, count in zip(classes, np.bincount(domain.labels, minlength=len(classes)), strict=True)
        if count == 0
    ]
    if empty:
        raise FolderError(f"classes without images: {', '.join(empty)}")
    return tuple(classes), files


def _dataset(
    name: str, root: Path, classes: tuple[str, ...], files: Sequence[DomainFiles], size: int, kind: Kind
) -> DomainDataset:
    states = file_states(root, [path for domain in files for path in domain.paths])
    images, fingerprint = cached_images(root, states, size)
    parts = np.split(images, np.cumsum([len(d.paths) for d in files])[:-1])
    domains = tuple(
        Domain(domain.name, part, domain.labels, _groups(domain.paths))
        for domain, part in zip(files, parts, strict=True)
    )
    return DomainDataset(name, domains, classes, kind, fingerprint, root)


def _groups(paths: Sequence[Path]) -> NDArray[np.int64] | None:
    """Number the photographs that images are drawings of; None where no two images share one."""
    numbers: dict[str | Path, int] = {}
    groups = []
    for path in paths:
        drawing = _DRAWING.fullmatch(path.stem)
        groups.append(numbers.setdefault(drawing[1] if drawing else path, len(numbers)))
    return np.array(groups, dtype=np.int64) if len(numbers) < len(groups) else None


@dataclass(frozen=True)
class _Benchmark:
    """What is published of a benchmark set.

    Attributes:
        name: its name in tables.
        folder: its folder's name in DomainBed.
        domains: the names of every domain's folder that are in use, in order.
        classes: number of classes.
        counts: number of images per domain.
        class_counts: number of images per domain and class, where it is known.
    """

    name: str
    folder: str
    domains: tuple[tuple[str, ...], ...]
    classes: int
    counts: tuple[int, ...]
    class_counts: tuple[tuple[int, ...], ...] | None = None

    @property
    def outline(self) -> Outline:
        return Outline(tuple(names[0] for names in self.domains), self.classes, sum(self.counts))


_BENCHMARKS = (
    _Benchmark(
        "PACS",
        "PACS",
        (("art_painting",), ("cartoon",), ("photo",), ("sketch",)),
        7,
        (2048, 2344, 1670, 3929),
        (
            (379, 255, 285, 184, 201, 295, 449),
            (389, 457, 346, 135, 324, 288, 405),
            (189, 202, 182, 186, 199, 280, 432),
            (772, 740, 753, 608, 816, 80, 160),
        ),
    ),
    _Benchmark("VLCS", "VLCS", (("Caltech101",), ("LabelMe",), ("SUN09",), ("VOC2007",)), 5, (1415, 2656, 3282, 3376)),
    _Benchmark(
        "OfficeHome",
        "office_home",
        (("Art",), ("Clipart",), ("Product",), ("Real World", "Real")),
        65,
        (2427, 4365, 4439, 4357),
    ),
    _Benchmark(
        "TerraIncognita",
        "terra_incognita",
        (("location_100",), ("location_38",), ("location_43",), ("location_46",)),
        10,
        (4879, 9767, 4020, 6122),
    ),
    _Benchmark(
        "DomainNet",
        "domain_net",
        (("clipart",), ("infograph",), ("painting",), ("quickdraw",), ("real",), ("sketch",)),
        345,
        (48129, 51605, 72266, 172500, 172947, 69128),
    ),
)


def _open_benchmark(benchmark: _Benchmark, data_dir: Path | None, image_size: int | None = None) -> DomainDataset:
    """Open a benchmark set in (or at) `data_dir`; differences from what is published are a warning."""
    root = _benchmark_root(benchmark, data_dir)
    classes, files = _domain_files(root)
    if differences := _differences(benchmark, classes, files):
        warnings.warn(
            f"{benchmark.name} in {root} is not the published data set: {'; '.join(differences)}", stacklevel=2
        )
    size = IMAGE_SIZE if image_size is None else image_size
    return _dataset(benchmark.name, root, classes, files, size, "photographs")


def _benchmark_root(benchmark: _Benchmark, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise FolderNotFoundError(
            f"{benchmark.name} needs a data folder: the one that holds the folder {benchmark.name}"
        )
    data_dir = _absolute(data_dir)
    if not data_dir.is_dir():
        raise FolderNotFoundError(f"{data_dir}: no such folder")
    names = sorted({benchmark.name, benchmark.folder})
    found = [data_dir / name for name in names if (data_dir / name).is_dir()]
    if not found and data_dir.name in names:
        found = [data_dir]
    if not found:
        raise FolderNotFoundError(f"{data_dir} does not hold {' or '.join(names)}")
    if len(found) > 1:
        raise FolderError(f"{data_dir} holds both {' and '.join(names)}")
    return found[0]


def _differences(benchmark: _Benchmark, classes: Sequence[str], files: Sequence[DomainFiles]) -> list[str]:
    differences = []
    names = [domain.name for domain in files]
    same_domains = len(names) == len(benchmark.domains) and all(map(lambda n, k: n in k, names, benchmark.domains))
    if not same_domains:
        expected = ", ".join(known[0] for known in benchmark.domains)
        differences.append(f"domains {', '.join(names)} instead of {expected}")
    if len(classes) != benchmark.classes:
        differences.append(f"{len(classes)} classes instead of {benchmark.classes}")
    counts = [len(domain.paths) for domain in files]
    if same_domains:
        differences += [
            f"{count} images in {name} instead of {published}"
            for name, count, published in zip(names, counts, benchmark.counts, strict=True)
            if count != published
        ]
    if benchmark.class_counts is not None and not differences:
        differences += [
            f"{count} images of {class_name} in {domain.name} instead of {published}"
            for domain, known in zip(files, benchmark.class_counts, strict=True)
            for class_name, count, published in zip(
                classes, np.bincount(domain.labels, minlength=len(classes)).tolist(), known, strict=True
            )
            if count != published
        ]
    return differences


DATASETS.register("folder", DatasetEntry(open_folder, kind=None))
for _benchmark in _BENCHMARKS:
    DATASETS.register(
        _benchmark.name,
        DatasetEntry(partial(_open_benchmark, _benchmark), kind="photographs", outline=_benchmark.outline),
    )
