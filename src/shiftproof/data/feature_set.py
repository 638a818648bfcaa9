"""Feature sets: folders of the vectors that a network computed from the pictures of a data set, domain by domain.

A folder holds `features.json` and, for the domain with the number i, `i.features.npy`, `i.targets.npy` and, if groups
are known, `i.groups.npy`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.field_error import FieldError
from shiftproof.base.files import locked, write_json
from shiftproof.data.arrays import UNSEEN_SECONDS
from shiftproof.data.dataset import DATASETS, DataFolderError, DatasetEntry, DomainDataset
from shiftproof.data.domain import Domain

FACTS_FILE = "features.json"
FORMAT = 1
"""Raise it when the files change, so that no version takes another's for its own."""
_READ_AT_ONCE = 1 << 20
_AGAIN = "delete it and encode again"


class FeatureSetError(DataFolderError):
    """A folder cannot be opened as a feature set."""


@dataclass(frozen=True)
class Encoder:
    """What computed features, and from what.

    Attributes:
        dataset: name of the data set of pictures.
        data_fingerprint: hash of its content.
        model: name of the model whose featurizer it was.
        weights: what its weights are called; None for a random start.
        weights_fingerprint: hash of the file's content; None for a random start.
        input_shape: shape of the pictures, (channels, height, width).
        normalisation: normalisation of the pictures.
        version: version of shiftproof.
    """

    dataset: str
    data_fingerprint: str
    model: str
    weights: str | None
    weights_fingerprint: str | None
    input_shape: tuple[int, ...]
    normalisation: str
    version: str

    def __str__(self) -> str:
        start = "a random start" if self.weights is None else f"weights {self.weights} ({self.weights_fingerprint})"
        size = " x ".join(map(str, self.input_shape[1:]))
        return f"{self.model}, {start}, pictures of {size} pixels, normalisation {self.normalisation}"


def check_free(folder: Path) -> None:
    """Raise FileExistsError if something is where a feature set shall be written."""
    if os.path.lexists(folder):
        what = "is a feature set already; delete it to" if is_feature_set(folder) else "exists already; name another to"
        raise FileExistsError(f"{folder} {what} encode into it")


def is_feature_set(folder: Path) -> bool:
    """Return whether a folder holds a feature set, or a part of one."""
    return (folder / FACTS_FILE).is_file() or _holds_arrays(folder)


def write_features(
    folder: Path,
    source: DomainDataset,
    encoder: Encoder,
    size: int,
    encode: Callable[[Domain], Iterable[NDArray[np.float32]]],
) -> None:
    """Write a feature set, which appears when it is whole.

    Args:
        folder: the folder to write; until it is whole, its files are in `<folder>.partial`.
        source: the data set of pictures.
        encoder: what computes the features.
        size: number of features of a picture.
        encode: yields the features of a domain's pictures in order, in parts: float32, shape (n, size).

    Raises:
        FileExistsError: the folder exists, or another process is writing it.
        ValueError: a feature is not finite.
        OSError: the disk is full, or cannot be written.
    """
    folder = folder.absolute()
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as partial:
        try:
            _check_space(partial, sum(map(len, source.domains)) * size * 4)
            digests = {}
            for i, domain in enumerate(source.domains):
                shape = (len(domain), size)
                name = f"{i}.features.npy"
                digests[name] = _write(partial / name, "<f4", shape, _finite(domain, encode(domain)))
                for what, rows in (("targets", domain.targets), ("groups", domain.groups)):
                    if rows is not None:
                        name = f"{i}.{what}.npy"
                        digests[name] = _write(partial / name, rows.dtype.str, rows.shape, [rows])
            facts = {
                "format": FORMAT,
                "name": f"{source.name}_{encoder.model}",
                "task": source.task,
                "classes": source.classes,
                "domains": source.domain_names,
                "encoder": asdict(encoder),
                "sha256": digests,
            }
            write_json(partial / FACTS_FILE, facts)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def open_features(data_dir: Path | None, image_size: int | None = None) -> DomainDataset:
    """Open a feature set: its features stay in their files, which are read once to see that they are whole.

    Args:
        data_dir: the folder that `shiftproof encode` wrote.
        image_size: None, because there are no pictures any more.

    Raises:
        FeatureSetError: the folder is no feature set, is damaged or half-written, or of another format.
        FieldError: an image size is given.
    """
    if image_size is not None:
        raise FieldError("image_size", "the data set features has no pictures: it takes no image size")
    if data_dir is None:
        raise FeatureSetError("the data set features needs a data folder: the one that `shiftproof encode` wrote")
    facts = _facts(data_dir)
    try:
        name, task, digests = facts["name"], facts["task"], facts["sha256"]
        names, classes = tuple(facts["domains"]), tuple(facts["classes"])
        encoder = Encoder(**{**facts["encoder"], "input_shape": tuple(facts["encoder"]["input_shape"])})
        _check_whole(data_dir, name, digests)
        domains = tuple(_domain(data_dir, i, one) for i, one in enumerate(names))
        content = (names, classes, task, sorted(digests.items()))
        fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        return DomainDataset(name, domains, classes, "vectors", fingerprint, data_dir, task, encoder=str(encoder))
    except FeatureSetError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise _damaged(data_dir, f"{type(error).__name__}: {error}") from error


DATASETS.register(
    "features",
    DatasetEntry(open_features, kind="vectors"),
    summary="Features of a network, from the folder that `shiftproof encode` wrote.",
)


# Writing


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write in, in which no other process writes at the same time."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with locked(folder.with_name(f".{folder.name}.lock")):
            if _holds_arrays(partial):
                shutil.rmtree(partial)  # left by a process that was killed
            elif partial.is_dir():
                partial.rmdir()  # an error unless it is empty: what lies in it is not ours
            partial.mkdir()
            yield partial
    except TimeoutError as error:
        raise FileExistsError(f"{folder}: another process is encoding into it") from error


def _check_space(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"the features take {needed / 1e9:.2f} GB, but {folder.parent} has {free / 1e9:.2f} GB left")


def _finite(domain: Domain, parts: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    start = 0
    for part in parts:
        if not (finite := np.isfinite(part).all(axis=1)).all():
            raise ValueError(
                f"the features of picture {start + int(finite.argmin()) + 1} of domain {domain.name} are not finite: "
                "the weights do not go with the model, or the pictures are normalised otherwise"
            )
        start += len(part)
        yield part


def _write(path: Path, dtype: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> str:
    """Write an array part by part, and return the file's SHA-256.

    It is not mapped: on a full disk a write raises, while a mapped page would kill the process.
    """
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for content in chain([header.getvalue()], (part.tobytes() for part in parts)):
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


# Reading


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    if not path.is_file():
        raise FeatureSetError(_absent(folder))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(folder, f"{FACTS_FILE}: {error}") from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise _damaged(folder, f"{FACTS_FILE} states no format")
    if facts["format"] != FORMAT:
        raise FeatureSetError(
            f"{folder} is a feature set of format {facts['format']}, and this version of shiftproof reads {FORMAT}; "
            "encode again with this version"
        )
    return facts


def _absent(folder: Path) -> str:
    """Return why a folder without facts is none."""
    if _holds_arrays(folder):
        return f"{folder} is half a feature set: it has no {FACTS_FILE}, because encoding was interrupted; {_AGAIN}"
    if folder.is_dir():
        return f"{folder} is no feature set: it has no {FACTS_FILE}, which `shiftproof encode` writes"
    left = folder.with_name(f"{folder.name}.partial")
    more = f"; {left.name} beside it is what an interrupted encoding left: encode again" if left.is_dir() else ""
    return f"{folder}: no such folder{more}"


def _holds_arrays(folder: Path) -> bool:
    return any(folder.glob("*.features.npy"))


def _check_whole(folder: Path, name: str, digests: Mapping[str, str]) -> None:
    """Read every file, and compare it with what was written."""
    from tqdm import tqdm

    files = {folder / file: digest for file, digest in digests.items()}
    for path in files:
        if not path.is_file():
            raise _damaged(folder, f"it lacks {path.name}")
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, desc=f"reading {name}", unit="B", unit_scale=True, delay=UNSEEN_SECONDS, leave=False) as bar:
        for path, expected in files.items():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_READ_AT_ONCE):
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != expected:
                raise _damaged(folder, f"{path.name} is not as it was written")


def _domain(folder: Path, number: int, name: str) -> Domain:
    groups = folder / f"{number}.groups.npy"
    return Domain(
        name,
        np.load(folder / f"{number}.features.npy", mmap_mode="r"),
        np.load(folder / f"{number}.targets.npy"),
        np.load(groups) if groups.exists() else None,
    )


def _damaged(folder: Path, reason: str) -> FeatureSetError:
    return FeatureSetError(f"{folder} is a damaged feature set ({reason}); {_AGAIN}")
