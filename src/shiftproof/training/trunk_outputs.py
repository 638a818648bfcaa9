"""The outputs of a frozen trunk, computed once for every picture and view, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from shiftproof.base.files import cache_folder, locked, whole_file
from shiftproof.data import CacheError, on_device
from shiftproof.models import Cut

LAYOUT = 2
"""Part of every file's name; raise it when the outputs or the files change."""
_BLOCK = 64  # pictures in a forward pass, always the same, because results depend on it in the last bits
_REPORT_SECONDS = 5.0
_SUM_BYTES = 4  # the CRC-32 of the outputs, at the end of their file
_READ_AT_ONCE = 2**24
_SOUND: set[tuple[Path, int, int, int]] = set()
"""States of files that had their checksum: a process reads an unchanged file once."""

Pictures = Callable[[int, NDArray[np.int64], int], Tensor]
"""Returns normalised pictures of a domain for some of its rows and a view, of which 0 is the picture as it is."""


class TrunkOutputs:
    """What a trunk puts out for the pictures of a data set, memory-mapped.

    There is a file for every domain and view. It is made when first read: processes that need it at once make it once,
    and one that is half written, damaged or of another version is made again. The name of the folder determines the
    content.

    Args:
        cut: the network, cut behind its trunk, on its device.
        facts: everything that the outputs depend on, with equal texts for equal outputs.
        sizes: number of pictures of every domain.
        dtype: type in which they are kept, float16 or float32.
        pictures: the trunk's inputs.
    """

    def __init__(
        self, cut: Cut, facts: Sequence[object], sizes: Sequence[int], dtype: torch.dtype, pictures: Pictures
    ) -> None:
        self._cut, self._sizes, self._pictures = cut, sizes, pictures
        self._dtype = np.dtype(np.float16 if dtype == torch.float16 else np.float32)
        self._device = next(cut.rest.parameters()).device
        self._name = f"trunk-{_digest(LAYOUT, cut.trunk.names, self._dtype.name, *facts)}"
        self._opened: dict[tuple[int, int], NDArray[Any]] = {}

    @cached_property
    def folder(self) -> Path:
        """The folder of the files.

        Raises:
            CacheError: there is no place for it.
        """
        try:
            folder = cache_folder(holding=self._name) / self._name
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"there is no place for the outputs of the trunk: {error}") from error
        return folder

    def make(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Make the files of domains and views that are not there; processes that call it at once share the work.

        Raises:
            CacheError: they cannot be kept.
        """
        missing = [key for key in wanted if key not in self._opened and not self._file(*key).exists()]
        self._check_space(missing)
        missing = [key for key in wanted if key not in self._opened]
        while missing:
            taken = [key for key in missing if self._open_unless_busy(*key)]
            if not taken:
                self._view(*missing[0])  # all others are busy: wait for one
                taken = missing[:1]
            missing = [key for key in missing if key not in taken]

    def _open_unless_busy(self, domain: int, view: int) -> bool:
        try:
            self._opened[domain, view] = self._read_or_make(domain, view, wait=False)
        except TimeoutError:
            return False
        return True

    def rows(self, domain: int, rows: NDArray[np.int64], views: NDArray[np.int64] | None) -> Tensor:
        """Return outputs, float32 on the device, shape (rows, ...).

        Args:
            domain: index of the domain.
            rows: indices of its pictures.
            views: the view of each, from 1; None for the pictures as they are.

        Raises:
            CacheError: they cannot be kept.
        """
        if views is None:
            found = self._view(domain, 0)[rows]
        else:
            found = np.empty((len(rows), *self._cut.shape), self._dtype)
            for view in np.unique(views).tolist():
                there = views == view
                found[there] = self._view(domain, view)[rows[there]]
        outputs = on_device(found, self._device).float()
        return outputs.contiguous(memory_format=torch.channels_last) if outputs.ndim == 4 else outputs

    def _view(self, domain: int, view: int) -> NDArray[Any]:
        if (domain, view) not in self._opened:
            self._opened[domain, view] = self._read_or_make(domain, view)
        return self._opened[domain, view]

    def _read_or_make(self, domain: int, view: int, *, wait: bool = True) -> NDArray[Any]:
        file = self._file(domain, view)
        shape = (self._sizes[domain], *self._cut.shape)
        if (found := _read(file, shape, self._dtype)) is not None:
            return found
        try:
            with locked(file.with_suffix(".lock"), f"waiting for another process that makes {file}" if wait else None):
                if (found := _read(file, shape, self._dtype)) is None:
                    self._make(file, shape, domain, view)
                    found = _read(file, shape, self._dtype)
        except (CacheError, TimeoutError):
            raise
        except OSError as error:
            raise CacheError(f"the outputs of the trunk cannot be kept in {self.folder}: {error}") from error
        if found is None:
            raise CacheError(f"{file} was written but cannot be read back")
        return found

    def _file(self, domain: int, view: int) -> Path:
        return self.folder / f"{domain}-{view}.npy"

    def _check_space(self, files: Sequence[tuple[int, int]]) -> None:
        pictures = sum(self._sizes[domain] for domain, _ in files)
        needed = pictures * math.prod(self._cut.shape) * self._dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CacheError(
                f"the outputs of the trunk take {needed / 1e9:.2f} GB, but {self.folder} has {free / 1e9:.2f} GB left; "
                "set SHIFTPROOF_CACHE to another folder, or leave out the cache"
            )

    def _make(self, file: Path, shape: tuple[int, ...], domain: int, view: int) -> None:
        self._check_space([(domain, view)])
        checksum = 0
        with whole_file(file) as stream:
            stream.write(_header(shape, self._dtype))
            for block in self._outputs(domain, view):
                stream.write(block.data)
                checksum = zlib.crc32(block.data, checksum)
            stream.write(checksum.to_bytes(_SUM_BYTES, "little"))

    def _outputs(self, domain: int, view: int) -> Iterator[NDArray[Any]]:
        size = self._sizes[domain]
        bar = tqdm(
            total=size,
            desc=f"domain {domain}, view {view}",
            bar_format="{desc}: the trunk has seen {n} of {total} pictures, {remaining_s:.0f} s left",
            delay=_REPORT_SECONDS,
            mininterval=_REPORT_SECONDS,
            file=sys.stderr,
        )
        with bar:
            for start in range(0, size, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, size))
                exact = self._cut.trunk(self._pictures(domain, rows, view)).float().contiguous().cpu().numpy()
                with np.errstate(over="ignore"):
                    kept = exact.astype(self._dtype)
                if not np.isfinite(kept).all():
                    raise CacheError(
                        f"the trunk's outputs are not finite in {self._dtype.name}, first for picture "
                        f"{rows[~np.isfinite(kept.reshape(len(kept), -1)).all(1)][0]} of domain {domain}"
                        + ("; keep them in float32" if np.isfinite(exact).all() else "")
                    )
                yield np.ascontiguousarray(kept)
                bar.update(len(rows))


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _read(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Map a file; None if it is missing, damaged or of another form."""
    header = _header(shape, dtype)
    try:
        with file.open("rb") as stream:  # once: another process may put a new file in its place
            if stream.read(len(header)) != header or not _has_its_sum(file, stream):
                return None
            return np.memmap(stream, dtype, "r", len(header), shape)
    except (OSError, ValueError):
        return None


def _has_its_sum(file: Path, stream: BinaryIO) -> bool:
    """Return whether the outputs, which come next in the stream, have their checksum behind them."""
    status = os.fstat(stream.fileno())
    state = (file, status.st_ino, status.st_size, status.st_mtime_ns)
    if state in _SOUND:
        return True
    checksum, left = 0, status.st_size - stream.tell() - _SUM_BYTES
    while block := stream.read(max(0, min(left, _READ_AT_ONCE))):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    if stream.read() != checksum.to_bytes(_SUM_BYTES, "little"):
        return False
    _SOUND.add(state)
    return True
