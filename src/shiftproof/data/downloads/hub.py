"""Data sets on the Hugging Face hub: parquet files with the columns image, domain and label."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from shiftproof.base.extras import require
from shiftproof.data.downloads.archives import check_plain
from shiftproof.data.downloads.http import DownloadError, RemoteFile, download

_BATCH = 256
_COLUMNS = {"image.bytes": "BYTE_ARRAY", "image.path": "BYTE_ARRAY", "domain": "BYTE_ARRAY", "label": "INT64"}


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub.

    Attributes:
        repository: owner and name.
        revision: the commit.
        checksums: known checksums of files, by path; for other files the hub's own are used.
    """

    repository: str
    revision: str
    checksums: dict[str, str] = field(default_factory=dict)


def fetch_from_hub(dataset: HubDataset, downloads: Path, folder: Path) -> list[str]:
    """Fetch a data set and write it as `<folder>/<domain>/<class>/<image>`.

    Args:
        dataset: the data set.
        downloads: folder for the parquet files.
        folder: folder for the images.

    Returns:
        Remarks.

    Raises:
        DownloadError: the hub refuses or cannot be reached, or a file arrives damaged.
        ValueError: the files do not have the expected format, or a library is not installed.
    """
    require("pyarrow.parquet", "data")
    files = [download(file, downloads) for file in hub_files(dataset)]
    return write_images(files, folder)


def hub_files(dataset: HubDataset, endpoint: str | None = None) -> list[RemoteFile]:
    """List the parquet files of a data set, with the hub's SHA-256 sums.

    Args:
        dataset: the data set.
        endpoint: address of the hub; None for the usual one.

    Raises:
        DownloadError: the hub cannot be reached, or has no such files.
        ValueError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", "data")
    repository, revision = dataset.repository, dataset.revision
    try:
        found = hub.HfApi(endpoint=endpoint).dataset_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # it raises its own types and those of its HTTP library
        raise DownloadError(f"the hub does not list {repository} at {revision}: {error}") from error
    files = []
    for entry in sorted(found.siblings or (), key=lambda entry: str(entry.rfilename)):
        if not entry.rfilename.endswith(".parquet"):
            continue
        known = dataset.checksums.get(entry.rfilename)
        stated = f"sha256:{entry.lfs.sha256}" if entry.lfs else None
        url = hub.hf_hub_url(repository, entry.rfilename, repo_type="dataset", revision=found.sha, endpoint=endpoint)
        files.append(RemoteFile(url, entry.rfilename.replace("/", "_"), known or stated, entry.size))
    if not files:
        raise DownloadError(f"{repository} at {revision} holds no parquet files")
    return files


def write_images(files: Sequence[Path], folder: Path) -> list[str]:
    """Write the images of parquet files, byte for byte, as `<folder>/<domain>/<class>/<image>`.

    Images keep the names in their rows if these are unique within every class of a domain, so that the order of files,
    and with it DomainBed's splits, is the original one. Otherwise they are named by row number.

    Args:
        files: the files in order, with the columns image (bytes and path), domain (text) and label (a number, named in
            the schema as by the library datasets).
        folder: folder for the images; removed first if it exists.

    Returns:
        Remarks.

    Raises:
        ValueError: columns, rows or names are not as expected.
    """
    from tqdm import tqdm

    parquet = require("pyarrow.parquet", "data")
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(parquet.ParquetFile(file)) for file in files}
        for file, one in opened.items():
            _check_columns(one, file)
        classes = [check_plain(name, files[0]) for name in _class_names(opened[files[0]], files[0])]
        stated = Counter(
            (row["domain"], row["label"], PurePosixPath(row["image"]["path"] or "").name)
            for _, _, row in _rows(opened, ["image.path", "domain", "label"])
        )
        by_name = all(count == 1 and name for (_, _, name), count in stated.items())
        rows = tqdm(
            _rows(opened, ["image", "domain", "label"]), total=sum(stated.values()), desc=folder.name, unit="image"
        )
        for position, (file, number, row) in enumerate(rows):
            image, domain, label = row["image"], check_plain(row["domain"], file), row["label"]
            if not 0 <= label < len(classes):
                raise ValueError(f"{file}: row {number} has label {label}, but there are {len(classes)} classes")
            if image["bytes"] is None:
                raise ValueError(f"{file}: row {number} has no image.bytes")
            if by_name:
                name = check_plain(PurePosixPath(image["path"]).name, file)
            else:
                name = f"{position:06d}{_suffix(image['bytes'], number, file)}"
            target = folder / domain / classes[label] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image["bytes"])
    if by_name:
        return []
    return ["the copy does not state the names of its files: their order, and so DomainBed's splits, may differ"]


def _check_columns(opened: Any, file: Path) -> None:
    columns = [opened.schema.column(i) for i in range(len(opened.schema))]
    found = {column.path: column.physical_type for column in columns}
    for name, kind in _COLUMNS.items():
        if found.get(name) != kind:
            raise ValueError(f"{file}: there is no column {name} of type {kind}; there are {found}")


def _class_names(opened: Any, file: Path) -> list[str]:
    """Return the names of the labels, which the library datasets stores in the schema's metadata."""
    try:
        metadata = json.loads(opened.schema_arrow.metadata[b"huggingface"])
        names = metadata["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: the schema does not name the classes") from error
    return [str(name) for name in names]


def _rows(opened: Mapping[Path, Any], columns: list[str]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield file, number and columns of every row.

    Raises:
        ValueError: a row has no image, domain or label.
    """
    for file, one in opened.items():
        rows = chain.from_iterable(batch.to_pylist() for batch in one.iter_batches(_BATCH, columns=columns))
        for number, row in enumerate(rows):
            if lacking := [name for name, value in row.items() if value is None]:
                raise ValueError(f"{file}: row {number} has no {' and no '.join(lacking)}")
            yield file, number, row


def _suffix(content: bytes, number: int, file: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg", "PNG": ".png"}[str(image.format)]
    except (UnidentifiedImageError, KeyError) as error:
        raise ValueError(f"{file}: row {number} is neither JPEG nor PNG") from error
