"""A cache of decoded folder data sets: one memory-mapped file of resized images per data set and image size."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from shiftproof.base.files import cache_folder, locked
from shiftproof.data.dataset import DataFolderError
from shiftproof.data.images import ImageError, decode

_LAYOUT = 3  # part of every cache file's name; raise it when decoding changes
_BLOCK = 512
_FINGERPRINT_BYTES = 8
_LISTED = 10
_REPORT_SECONDS = 5.0
_ADVICE = "set SHIFTPROOF_CACHE to another folder"


class CacheError(OSError):
    """The cache cannot be written: its folder is not writable, or the disk is full."""


class UnreadableImagesError(DataFolderError):
    """Images of a data set cannot be used; the message lists the first ones.

    Attributes:
        errors: one error per such image.
    """

    def __init__(self, root: Path, errors: Sequence[ImageError]) -> None:
        self.errors = tuple(errors)
        lines = [str(error) for error in errors[:_LISTED]]
        if len(errors) > _LISTED:
            lines.append(f"and {len(errors) - _LISTED} more")
        super().__init__(f"{root}: {len(errors)} image(s) cannot be used:\n  " + "\n  ".join(lines))


class FileState(NamedTuple):
    """The state of a file, from which changes are noticed.

    Attributes:
        name: path relative to the data set's root, with forward slashes.
        size: size in bytes.
        mtime_ns: time of its last change, in nanoseconds.
    """

    name: str
    size: int
    mtime_ns: int


def file_states(root: Path, paths: Sequence[Path]) -> list[FileState]:
    """Return the states of files under `root`, in the order given."""
    states = []
    for path in paths:
        status = path.stat()
        states.append(FileState(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return states


class CachedImages(NamedTuple):
    """The images of a folder.

    Attributes:
        images: uint8, shape (n, 3, size, size), read-only and memory-mapped.
        fingerprint: hash of the files' names and the pixels, independent of the folder's place.
    """

    images: NDArray[np.uint8]
    fingerprint: str


def cached_images(
    root: Path, states: Sequence[FileState], image_size: int, *, listed_in: Path | None = None
) -> CachedImages:
    """Return a folder's images, decoded and resized on first use and whenever a file has changed.

    Processes that need the same images at once decode them once. Progress goes to the standard error.

    Args:
        root: the folder.
        states: its files, in the order of the result.
        image_size: side to which images are resized, in pixels.
        listed_in: the table that lists the files, whose earlier images these replace; None for the folder itself.

    Raises:
        UnreadableImagesError: some files are not usable images; it lists them after trying all files.
        CacheError: the cache cannot be written.
    """
    root = root.resolve()
    shape = (len(states), 3, image_size, image_size)
    source = root if listed_in is None else listed_in.resolve()
    prefix = f"{source.name}-{_digest(str(source))[:8]}-{image_size}px"
    # The name determines the content, and the file appears only when complete, so any file found can be used.
    name = f"{prefix}-{_digest(_LAYOUT, list(states))}.npy"
    try:
        folder = cache_folder(holding=name)
    except OSError as error:
        raise CacheError(f"there is no place for the images of {root}: {error}") from error
    file = folder / name
    if (cached := _opened(file, shape)) is not None:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{prefix}.lock", f"{root.name}: waiting for another process that decodes it"):
            if (cached := _opened(file, shape)) is None:
                for stale in folder.glob(f"{glob.escape(prefix)}-*.npy"):
                    with suppress(OSError):  # some systems do not remove files that are in use
                        stale.unlink()
                _build(file, folder / f"{prefix}.partial", root, states, shape)
                cached = _opened(file, shape)
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"cannot write the image cache in {folder}: {error}; {_ADVICE}") from error
    if cached is None:
        raise CacheError(f"{file} was written but cannot be read back; {_ADVICE}")
    return cached


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:16]


def _opened(file: Path, shape: tuple[int, ...]) -> CachedImages | None:
    """Map a cache file, an array followed by the fingerprint; None if it is missing, damaged or truncated."""
    try:
        images = np.load(file, mmap_mode="r")
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _FINGERPRINT_BYTES))
            fingerprint = stream.read().hex()
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):  # the last two of a damaged header
        return None
    if not isinstance(images, np.memmap) or images.shape != shape or images.dtype != np.uint8:
        return None
    return CachedImages(images, fingerprint) if size == images.offset + images.nbytes + _FINGERPRINT_BYTES else None


def _build(file: Path, partial: Path, root: Path, states: Sequence[FileState], shape: tuple[int, ...]) -> None:
    """Write the partial file, then make it the cache file."""
    needed, free = math.prod(shape), shutil.disk_usage(file.parent).free
    if needed > free:
        raise CacheError(
            f"the images of {root} take {needed / 1e9:.2f} GB decoded, "
            f"but {file.parent} has {free / 1e9:.2f} GB left; {_ADVICE}"
        )
    errors: list[ImageError] = []
    # Many scripts set this flag, which makes Pillow accept truncated images; other threads may rely on it later.
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    digest = hashlib.sha256(repr([state.name for state in states]).encode())
    try:
        with partial.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            # Written rather than mapped: on a full disk a write raises, while a mapped page would kill the process.
            for image in _decoded(root, states, shape[-1]):
                if isinstance(image, ImageError):
                    errors.append(image)
                elif not errors:
                    stream.write(image.data)
                    digest.update(image.data)
            stream.write(digest.digest()[:_FINGERPRINT_BYTES])
            stream.flush()
            os.fsync(stream.fileno())
        if errors:
            raise UnreadableImagesError(root, errors)
        partial.replace(file)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        partial.unlink(missing_ok=True)


def _decoded(root: Path, states: Sequence[FileState], image_size: int) -> Iterator[NDArray[np.uint8] | ImageError]:
    """Yield every image, or what is wrong with it, in order."""
    from tqdm import tqdm

    def load(state: FileState) -> NDArray[np.uint8] | ImageError:
        try:
            return decode(root / state.name, image_size)
        except ImageError as error:
            return error

    progress = tqdm(
        total=len(states),
        desc=root.name,
        bar_format="{desc}: {n} of {total} images decoded, {remaining_s:.0f} s left",
        delay=_REPORT_SECONDS,
        mininterval=_REPORT_SECONDS,
    )
    # Threads: Pillow decodes and resizes without the interpreter's lock, and they start at once. In blocks, so
    # that neither waiting tasks nor decoded images pile up.
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress:
        for start in range(0, len(states), _BLOCK):
            block = states[start : start + _BLOCK]
            yield from pool.map(load, block)
            progress.update(len(block))
