"""Unpacks archives safely: no name in an archive can put a file outside its folder."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_DAMAGE = (zipfile.BadZipFile, tarfile.ReadError, gzip.BadGzipFile, zlib.error, EOFError)


class ArchiveError(ValueError):
    """An archive is damaged, or would write outside its folder."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive; progress goes to the standard error.

    Args:
        archive: the file; its suffix determines the format (.zip, .tar, .tar.gz, ...).
        folder: the folder to unpack into; created if need be.

    Raises:
        ArchiveError: a name in it is absolute or leads out of the folder, it holds a link, is encrypted, uses an
            unknown compression, or is damaged; a damaged archive is removed, so that it is fetched again.
    """
    with removed_if_damaged(archive):
        if archive.suffix == ".zip":
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)


@contextmanager
def removed_if_damaged(archive: Path) -> Iterator[None]:
    """Remove an archive if reading it shows that it is damaged.

    Raises:
        ArchiveError: it was damaged.
    """
    try:
        yield
    except _DAMAGE as error:
        archive.unlink()
        raise ArchiveError(
            f"{archive} was damaged and has been removed ({error}); the same command fetches it again"
        ) from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    from tqdm import tqdm

    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            check_inside(member.filename, archive)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ArchiveError(f"{archive}: {member.filename} is a link")
        for member in tqdm(members, desc=archive.name, unit="file"):
            try:
                opened.extract(member, folder)
            except RuntimeError as error:  # encrypted, or a compression that zipfile does not know
                raise ArchiveError(f"{archive}: {member.filename}: {error}") from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    from tqdm import tqdm

    with tarfile.open(archive) as opened:
        for member in tqdm(opened, desc=archive.name, unit="file"):
            if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
                continue  # `tar -c .` adds the packed folder itself as a member
            check_inside(member.name, archive)
            if member.issym() or member.islnk():  # even a link inside may lead out once its folder is moved
                raise ArchiveError(f"{archive}: {member.name} is a link")
            try:
                opened.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise ArchiveError(f"{archive}: {error}") from error
        read_to_end(opened)


def read_to_end(archive: tarfile.TarFile) -> None:
    """Read an archive beyond its last member, as tarfile does not, because gzip's checksum is at the very end.

    Raises:
        BadGzipFile: the checksum is wrong.
    """
    while archive.fileobj is not None and archive.fileobj.read(1 << 20):
        pass


def check_inside(name: str, where: Path) -> None:
    """Raise unless a relative path stays inside its folder.

    Args:
        name: the path, from a downloaded file.
        where: the downloaded file, for the message.

    Raises:
        ArchiveError: the path is empty or absolute, has a drive, or goes up.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ArchiveError(f"{where}: the name '{name}' leads out of the folder")


def check_plain(name: str, where: Path) -> str:
    """Return a name if it is a plain name of a file or folder that is not hidden.

    Args:
        name: the name, from a downloaded file.
        where: the downloaded file, for the message.

    Raises:
        ArchiveError: it is not.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\:\0"):
        raise ArchiveError(f"{where}: '{name}' is not the name of a file or folder")
    return name
