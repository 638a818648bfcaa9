"""Downloads files: continues broken downloads, and keeps a file only if its length and checksum are right."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from shiftproof.base.extras import require

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = 2.0
_GOOGLE_DRIVE = "drive.google.com"


class DownloadError(OSError):
    """A file could not be fetched completely; the message names its address and its destination."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: its address.
        name: name of the downloaded file.
        checksum: algorithm and hexadecimal digest, as in "md5:d41d..."; None if unknown.
        size: size in bytes; None if unknown.
    """

    url: str
    name: str
    checksum: str | None = None
    size: int | None = None


def download(file: RemoteFile, folder: Path) -> Path:
    """Fetch a file into a folder and return its path; a file that is there already is not fetched again.

    Received data are kept in `<name>.partial`. After a broken connection this call continues the download as long as
    every attempt gets further; otherwise the next call does. Progress goes to the standard error.

    Args:
        file: the file.
        folder: the folder; created if need be.

    Raises:
        DownloadError: the server refuses or cannot be reached, the connection keeps breaking, length or checksum
            are wrong, or the file cannot be written. A file with a wrong length or checksum is removed.
        ValueError: a library that the file needs is not installed.
    """
    path = folder / file.name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{file.name}.partial"
    if urlsplit(file.url).hostname == _GOOGLE_DRIVE:
        _from_google_drive(file, partial)
    else:
        _from_server(file, partial)
    _verify(file, partial)
    partial.replace(path)
    return path


def _verify(file: RemoteFile, partial: Path) -> None:
    """Remove the file and raise DownloadError if its length or checksum is wrong."""
    size = partial.stat().st_size
    if file.size not in (None, size):
        partial.unlink()
        raise DownloadError(f"{file.url} -> {partial}: expected {file.size} bytes, found {size}; removed")
    if file.checksum is None:
        return
    algorithm, _, expected = file.checksum.partition(":")
    with partial.open("rb") as content:
        found = hashlib.file_digest(content, algorithm).hexdigest()
    if found != expected:
        partial.unlink()
        raise DownloadError(f"{file.url} -> {partial}: expected {algorithm} {expected}, found {found}; removed")


def _from_google_drive(file: RemoteFile, partial: Path) -> None:
    """Fetch with gdown, which confirms Google's prompt for large files and continues broken downloads."""
    gdown = require("gdown", "data")
    try:
        gdown.download(url=file.url, output=str(partial), resume=True)
    except Exception as error:  # it raises its own types and those of requests
        raise DownloadError(
            f"{file.url} -> {partial}: {str(error).partition(chr(10))[0]} "
            f"(what has arrived is in {partial}*.part; the same command continues there)"
        ) from error


class _Received(NamedTuple):
    """The end of an attempt: the length announced for the whole file, and the error that stopped it, if any."""

    expected: int | None
    broken: str | None


def _from_server(file: RemoteFile, partial: Path) -> None:
    """Fetch the partial file until it has the length that the server announces."""
    reached = partial.stat().st_size if partial.exists() else 0
    while True:
        received = _receive(file, partial)
        size = partial.stat().st_size if partial.exists() else 0
        if received.broken is None and received.expected in (None, size):
            return
        if size <= reached:
            lengths = "" if received.expected is None else f"expected {received.expected} bytes, found {size}; "
            raise DownloadError(
                f"{file.url} -> {partial}: {lengths}{received.broken or 'the connection was closed'}; "
                "the same command continues there"
            )
        reached = size
        time.sleep(_PAUSE_SECONDS)


def _receive(file: RemoteFile, partial: Path) -> _Received:
    """Request the missing end of the partial file and append it; start over if the server sends the whole file."""
    start = partial.stat().st_size if partial.exists() else 0
    request = Request(file.url, headers={"User-Agent": "shiftproof"})  # noqa: S310  (addresses are ours)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: HTTPResponse = urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise DownloadError(f"{file.url} -> {partial}: the server answers {error.code} {error.reason}") from error
        stated = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        whole = int(stated[1]) if stated else file.size
        if whole == start:
            return _Received(start, None)  # the partial file is complete
        if whole is None:
            raise DownloadError(
                f"{file.url} -> {partial}: the server has nothing after the {start} bytes received, and does not state "
                "the file's length; remove the partial file and the same command starts over"
            ) from error
        partial.unlink()  # it belongs to another version of the file
        return _receive(file, partial)
    except (HTTPException, OSError) as error:
        return _Received(None, _reason(error))
    with response:
        if start and not _continues(response, start):
            start = 0
        length = response.headers.get("Content-Length")
        expected = None if length is None else start + int(length)
        try:
            return _Received(expected, _append(response, partial, start, expected))
        except OSError as error:  # the disk may be full
            raise DownloadError(f"{file.url} -> {partial}: cannot be written: {_reason(error)}") from error


def _append(response: HTTPResponse, partial: Path, start: int, expected: int | None) -> str | None:
    """Write a response after the first `start` bytes, and return the error that cut it short, if any.

    Raises:
        OSError: it cannot be written.
    """
    from tqdm import tqdm

    with (
        partial.open("ab" if start else "wb") as output,
        tqdm(total=expected, initial=start, desc=partial.stem, unit="B", unit_scale=True) as bar,
    ):
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (HTTPException, OSError) as error:
                return _reason(error)
            if not chunk:
                return None
            output.write(chunk)
            bar.update(len(chunk))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _continues(response: HTTPResponse, start: int) -> bool:
    """Return whether a response begins at the requested position."""
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == HTTPStatus.PARTIAL_CONTENT and given is not None and int(given[1]) == start
