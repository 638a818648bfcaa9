"""Checks a data set on disk for missing, unreadable and duplicate images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import ImageFile

from shiftproof.base.registry import UnknownNameError
from shiftproof.base.text import one_line
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.folder import DomainFiles, list_folder, published_names
from shiftproof.data.images import ImageError, decode
from shiftproof.data.mnist import FOLDER, MNIST_SETS, count_mnist

_LISTED = 10
_BLOCK = 512


@dataclass(frozen=True)
class DataCheck:
    """The results of a check.

    Attributes:
        root: the folder that was checked.
        name: name of the published data set that it was compared with; None if it was not compared.
        counts: number of images by domain and class; for MNIST by part and digit.
        differences: differences from the published data set, in words.
        unreadable: images that training could not decode.
        across_domains: groups of identical files in more than one domain.
        across_classes: groups of identical files in more than one class of one domain.
        within_classes: groups with more than one file in the same class of a domain, which a split may separate. A
            group may be of several kinds.
        left_out: number of files in classes whose names are not those of images, by suffix.
        misplaced: images outside the classes, which are left out too.
    """

    root: Path
    name: str | None
    counts: dict[str, dict[str, int]]
    differences: tuple[str, ...] = ()
    unreadable: tuple[ImageError, ...] = ()
    across_domains: tuple[tuple[Path, ...], ...] = ()
    across_classes: tuple[tuple[Path, ...], ...] = ()
    within_classes: tuple[tuple[Path, ...], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    misplaced: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all images are there and readable; other findings do not count, because published sets have them."""
        return not self.differences and not self.unreadable

    def text(self) -> str:
        """Return a report: the table of counts, then the findings."""
        lines = [f"{self.root}", "", *counts_table(self.counts), ""]
        if self.name is None:
            lines.append("not compared with a published data set")
        elif not self.differences:
            lines.append(f"the counts are those of the published {self.name}")
        lines += [f"differs from the published {self.name}: {difference}" for difference in self.differences]
        lines += _listing("unreadable images", [str(error) for error in self.unreadable])
        for what, groups in (
            ("in several domains", self.across_domains),
            ("in several classes of a domain", self.across_classes),
            ("in one class of a domain more than once", self.within_classes),
        ):
            lines += _listing(f"images that are {what}", [" = ".join(map(self._name, group)) for group in groups])
        lines += _listing("images that are in no class, left out", [self._name(path) for path in self.misplaced])
        suffixes = ", ".join(f"{suffix} {count}" for suffix, count in sorted(self.left_out.items()))
        lines.append(f"other files in classes, left out: {suffixes or 0}")
        if len(self.counts) == 1:
            lines.append("it has one domain: training needs two or more, because it leaves one out")
        return "\n".join(map(one_line, lines))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the lines of a table of counts, with classes as rows, domains as columns, and sums."""
    domains = list(counts)
    classes = list(dict.fromkeys(chain.from_iterable(counts.values())))
    rows = [["class", *domains, "all"]]
    for name in classes:
        row = [counts[domain].get(name, 0) for domain in domains]
        rows.append([name, *map(str, row), str(sum(row))])
    sums = [sum(counts[domain].values()) for domain in domains]
    rows.append(["all", *map(str, sums), str(sum(sums))])
    return aligned(rows)


def dataset_table(dataset: DomainDataset) -> list[str]:
    """Return the lines of a table of a data set's rows, by domain and class, or by domain with the means of targets."""
    domains, classes = dataset.domains, dataset.classes
    if dataset.task == "classification":
        found = [np.bincount(domain.targets, minlength=len(classes)).tolist() for domain in domains]
        counts = [dict(zip(classes, one, strict=True)) for one in found]
        return counts_table({domain.name: one for domain, one in zip(domains, counts, strict=True)})
    rows = [["domain", "rows", *(f"mean of {name}" for name in classes)]]
    for domain in domains:
        means = np.atleast_1d(domain.targets.mean(axis=0, dtype=np.float64)).tolist()
        rows.append([domain.name, str(len(domain)), *(f"{mean:.4g}" for mean in means)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, the others to the right."""
    rows = [list(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _listing(title: str, entries: Sequence[str]) -> list[str]:
    more = [f"  and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries[:_LISTED]), *more]


def check_data(data_dir: Path, dataset: str | None = None) -> DataCheck:
    """Check the layout, counts and image files of a data set. Progress goes to the standard error.

    Every file is read and decoded as in training.

    Args:
        data_dir: the folder of the domains, or with `dataset` also the folder that holds it.
        dataset: name of the published data set to compare with, which may be spelled as for `shiftproof data get`;
            None for the one that the folder is named after, if any.

    Raises:
        FolderError: the folder is missing or not laid out as a data set.
        DatasetNotFoundError: files of MNIST are missing.
        MNISTError: the files of MNIST are damaged.
        UnknownNameError: the published data set is unknown.
    """
    valid = [*published_names(), *MNIST_SETS]
    names = {spelling: name for name in valid for spelling in (name.lower(), name)}
    if dataset is not None and dataset not in names:
        raise UnknownNameError("published data set", dataset, valid)
    if dataset in MNIST_SETS or (dataset is None and data_dir.absolute().name == FOLDER):
        root = data_dir / FOLDER if (data_dir / FOLDER).is_dir() else data_dir
        return DataCheck(root, FOLDER, *count_mnist(root / "raw"))
    listed = list_folder(data_dir, None if dataset is None else names[dataset])
    unreadable, equal = _read_all(listed.files, listed.root.name)
    across_domains, across_classes, within_classes = [], [], []
    for group in equal:
        places = Counter(path.relative_to(listed.root).parts[:2] for path in group)  # number by domain and class
        domains = {domain for domain, _ in places}
        if len(domains) > 1:
            across_domains.append(group)
        if len(places) > len(domains):
            across_classes.append(group)
        if len(group) > len(places):
            within_classes.append(group)
    return DataCheck(
        listed.root,
        listed.name,
        listed.counts,
        listed.differences,
        tuple(unreadable),
        tuple(across_domains),
        tuple(across_classes),
        tuple(within_classes),
        Counter(path.suffix.lower() or "no suffix" for path in listed.left_out),
        listed.misplaced,
    )


def _read_all(files: Sequence[DomainFiles], name: str) -> tuple[list[ImageError], list[tuple[Path, ...]]]:
    """Return the images that cannot be decoded, and the groups of equal files."""
    from tqdm import tqdm

    paths = [path for domain in files for path in domain.paths]
    unreadable: list[ImageError] = []
    by_digest: dict[bytes, list[Path]] = defaultdict(list)
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(paths), desc=name, unit="image") as bar:
            for start in range(0, len(paths), _BLOCK):  # in blocks, so that an interrupt need not wait for all files
                block = paths[start : start + _BLOCK]
                for path, outcome in zip(block, pool.map(_read, block), strict=True):
                    if isinstance(outcome, ImageError):
                        unreadable.append(outcome)
                    else:
                        by_digest[outcome].append(path)
                bar.update(len(block))
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    return unreadable, [tuple(group) for group in by_digest.values() if len(group) > 1]


def _read(path: Path) -> bytes | ImageError:
    """Return a digest of an image file, or the error of decoding it."""
    try:
        decode(path, 1)  # any size will do, because training's decoder reads the whole file first
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(path, error.strerror or str(error))
