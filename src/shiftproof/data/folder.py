"""Folder data sets, `<root>/<domain>/<class>/<image>`, and the benchmark sets that come in this form."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.choices import Kind
from shiftproof.base.files import with_home
from shiftproof.base.registry import UnknownNameError
from shiftproof.data.cache import cached_images, file_states
from shiftproof.data.dataset import DATASETS, DatasetEntry, DatasetNotFoundError, DomainDataset, Outline
from shiftproof.data.domain import Domain
from shiftproof.data.images import SUFFIXES, is_image
from shiftproof.data.kinds import Look, look_at
from shiftproof.data.layout import AmbiguousFolderError, check_names, domains_and_classes, refuse_folders_of_folders
from shiftproof.data.tree import FolderError, Tree

IMAGE_SIZE = 224
_SUFFIXES = " ".join(SUFFIXES)
_DRAWING = re.compile(r"(n\d+_\d+)-\d+")  # a drawing in PACS: photograph and number of the drawing


class FolderNotFoundError(FolderError, DatasetNotFoundError):
    """The folder of the data set is missing."""


class DomainFiles(NamedTuple):
    """The image files of one domain.

    Attributes:
        name: the domain's name.
        paths: the n files, sorted by class and, within a class, by name.
        labels: int64, shape (n,): index of each file's class.
    """

    name: str
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]


def open_folder(data_dir: Path | None, image_size: int | None = None, kind: Kind | None = None) -> DomainDataset:
    """Open any tree of `<root>/<domain>/<class>/<image>`, in the order of DomainBed (torchvision's ImageFolder).

    Files outside the class folders, hidden files and files without the suffix of an image are left out. Pictures in
    subfolders of a class that also has pictures of its own belong to that class.

    Args:
        data_dir: the root, after which the data set is named.
        image_size: side to which images are resized, in pixels. The default is 224 for photographs, and for small
            images their own size up to 64.
        kind: kind of the images; None to infer it from the files (see `look_at_folder`).

    Raises:
        FolderError: a folder is missing, cannot be listed or is reached by two paths; the tree has another layout or
            could be read in two ways; a class is empty, classes differ between domains, or there is only one.
        UnreadableImagesError: files are damaged or not images.
        CacheError: the decoded images cannot be stored.
    """
    if data_dir is None:
        raise FolderError("a folder data set needs a data folder")
    root = _absolute(data_dir)
    classes, files = _domain_files(Tree(root))
    if kind is None or image_size is None:
        look = _look(files)
        kind = look.kind if kind is None else kind
        if image_size is None:
            image_size = IMAGE_SIZE if kind == "photographs" else look.small_size
    return _dataset(root.name, root, classes, files, image_size, kind)


def look_at_folder(data_dir: Path | None) -> Look:
    """Infer the kind of the images in a folder data set from the sizes and channels of some of its files.

    They are small images if no side is longer than 64 pixels, or 128 if all are grey; else photographs.

    Args:
        data_dir: the root.

    Raises:
        FolderError: as `open_folder`.
    """
    if data_dir is None:
        raise FolderError("a folder data set needs a data folder")
    return _look(_domain_files(Tree(_absolute(data_dir)))[1])


def _look(files: Iterable[DomainFiles]) -> Look:
    return look_at([path for domain in files for path in domain.paths])


class FolderContents(NamedTuple):
    """The contents of a folder data set.

    Attributes:
        root: the folder of its domains.
        name: name of the published data set that it is compared with; None if it is not compared.
        classes: class names; labels are indices into them.
        files: the image files, domain by domain.
        differences: differences from the published data set, in words.
        left_out: files in classes whose names are not those of images, without hidden files.
        misplaced: images outside the classes.
    """

    root: Path
    name: str | None
    classes: tuple[str, ...]
    files: tuple[DomainFiles, ...]
    differences: tuple[str, ...]
    left_out: tuple[Path, ...]
    misplaced: tuple[Path, ...]

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
    """List the images of a folder data set and compare it with the published one, without reading images.

    Args:
        data_dir: the folder of the domains, or with `name` also the folder that holds it.
        name: name of the published data set; None for the one that the folder is named after, if any.

    Raises:
        FolderError: as for `open_folder`.
        UnknownNameError: the published folder data set is unknown.
    """
    data_dir = _absolute(data_dir)
    published = {benchmark.name: benchmark for benchmark in _BENCHMARKS}
    if name is None:
        names = [one.name for one in _BENCHMARKS if data_dir.name in (one.name, one.folder)]
        name = names[0] if names else None
    elif name not in published:
        raise UnknownNameError("published folder data set", name, published_names())
    if name is None:
        root = data_dir
    else:
        try:
            root = _benchmark_root(published[name], data_dir)
        except FolderNotFoundError:  # the data set itself, in a folder with another name
            root = data_dir
    tree = Tree(root)
    classes, files = _domain_files(tree)
    differences = [] if name is None else _differences(published[name], classes, files)
    left_out = [
        listing.path / file
        for domain in files
        for class_name in classes
        for listing in tree.walk(root / domain.name / class_name)
        for file in listing.files
        if not is_image(file)
    ]
    misplaced = [
        folder / file
        for folder in (root, *(root / domain.name for domain in files))
        for file in tree.listing(folder).files
        if is_image(file)
    ]
    return FolderContents(root, name, classes, tuple(files), tuple(differences), tuple(left_out), tuple(misplaced))


def labelled_images(root: Path, classes: Sequence[str]) -> tuple[DomainFiles, ...]:
    """List the images of a folder for a model that knows `classes`.

    Args:
        root: folder of `<class>/<image>` (one domain, named after the folder) or `<domain>/<class>/<image>`.
        classes: the model's class names; labels are indices into them. The folder may have fewer classes.

    Raises:
        FolderError: a folder is missing, cannot be listed or is reached by two paths; there are no images, the model
            does not know a class, or a class holds only folders.
    """
    tree = Tree(_absolute(root))
    root, folders = tree.root, tree.listing(tree.root).folders
    known, below = set(classes), {folder: tree.listing(root / folder).folders for folder in folders}
    flat = (folders and known.issuperset(folders)) or (
        not any(known.intersection(names) for names in below.values())
        and any(any(map(is_image, tree.listing(root / folder).files)) for folder in folders)
    )
    domains = {root.name: (root, folders)} if flat else {name: (root / name, below[name]) for name in folders}
    check_names(domains, root)
    for folder, names in domains.values():
        refuse_folders_of_folders(tree, folder, names)
    unknown = sorted({name for _, names in domains.values() for name in names} - known)
    if unknown:
        raise FolderError(
            f"{root}: the model does not know the classes {', '.join(unknown)}; it knows {', '.join(classes)}"
        )
    index = {name: label for label, name in enumerate(classes)}
    files = tuple(
        _files(tree, name, folder, {name: index[name] for name in names}) for name, (folder, names) in domains.items()
    )
    empty = [domain.name for domain in files if not domain.paths]
    if empty or not files:
        raise FolderError(
            f"{root}: no images in {', '.join(empty) or 'it'}; expected <class>/<image> or <domain>/<class>/<image>, "
            f"with images in {_SUFFIXES}"
        )
    return files


def pictures_below(folder: Path) -> list[Path]:
    """List the images of a folder and all folders below it: by folder, and in a folder by name.

    The paths begin with the folder as it is given. Hidden files and files without the suffix of an image are left out.

    Raises:
        FolderError: a folder is missing, cannot be listed or is reached by two paths; or there are no images.
    """
    tree = Tree(_absolute(folder))
    found = [
        folder / listing.path.relative_to(tree.root) / file
        for listing in tree.walk(tree.root)
        for file in listing.files
        if is_image(file)
    ]
    if not found:
        raise FolderError(f"{folder}: no images in it or below; images are files in {_SUFFIXES}")
    return found


def _absolute(folder: Path) -> Path:
    """Return an absolute path without following links, so that its last part is the name that the user knows."""
    return Path(os.path.abspath(with_home(folder)))


def _files(tree: Tree, name: str, folder: Path, labels: Mapping[str, int]) -> DomainFiles:
    """List the images of a domain's classes and their subfolders, in the order of torchvision."""
    found = [
        (listing.path / file, label)
        for class_name, label in sorted(labels.items())
        for listing in tree.walk(folder / class_name)
        for file in listing.files
        if is_image(file)
    ]
    return DomainFiles(name, tuple(path for path, _ in found), np.array([label for _, label in found], np.int64))


def _domain_files(tree: Tree) -> tuple[tuple[str, ...], list[DomainFiles]]:
    """Check the layout, and return the classes and the files of every domain."""
    domains, classes = domains_and_classes(tree)
    labels = {name: label for label, name in enumerate(classes)}
    files = [_files(tree, domain, tree.root / domain, labels) for domain in domains]
    empty = [
        str(tree.root / domain.name / name)
        for domain in files
        for name, count in zip(classes, np.bincount(domain.labels, minlength=len(classes)), strict=True)
        if count == 0
    ]
    if empty:
        raise FolderError(f"classes without images: {', '.join(empty)}; images are files in {_SUFFIXES}")
    return classes, files


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
    """Return for every image the number of the photograph that it was drawn from; None if no two share one."""
    numbers: dict[str | Path, int] = {}
    groups = []
    for path in paths:
        drawing = _DRAWING.fullmatch(path.stem)
        groups.append(numbers.setdefault(drawing[1] if drawing else path, len(numbers)))
    return np.array(groups, dtype=np.int64) if len(numbers) < len(groups) else None


@dataclass(frozen=True)
class _Benchmark:
    """The published facts of a benchmark data set.

    Attributes:
        name: its name in tables.
        folder: its folder's name in DomainBed.
        domains: the domains in order, each with all names of its folder in use.
        classes: number of classes.
        counts: number of images per domain.
        class_counts: number of images per domain and class, if known.
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
    """Open a benchmark data set in (or at) `data_dir`, and warn of differences from the published one."""
    root = _benchmark_root(benchmark, data_dir)
    try:
        classes, files = _domain_files(Tree(root))
    except AmbiguousFolderError as error:
        raise AmbiguousFolderError(
            f"{error}\n{benchmark.name} is recognised by its folder's name; open other folders with --dataset folder"
        ) from error
    if differences := _differences(benchmark, classes, files):
        warnings.warn(
            f"{benchmark.name} in {root} is not the published data set: {'; '.join(differences)}", stacklevel=2
        )
    size = IMAGE_SIZE if image_size is None else image_size
    return _dataset(benchmark.name, root, classes, files, size, "photographs")


def _benchmark_root(benchmark: _Benchmark, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise FolderNotFoundError(f"{benchmark.name} needs a data folder, which holds the folder {benchmark.name}")
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


DATASETS.register(
    "folder", DatasetEntry(open_folder, kind=None), summary="Your own images: a folder of <domain>/<class>/<image>."
)
for _benchmark in _BENCHMARKS:
    DATASETS.register(
        _benchmark.name,
        DatasetEntry(partial(_open_benchmark, _benchmark), kind="photographs", outline=_benchmark.outline),
        summary=f"{len(_benchmark.outline.domains)} domains, {_benchmark.outline.classes} classes and "
        f"{_benchmark.outline.images} photographs, from a folder that holds {_benchmark.name}.",
    )
