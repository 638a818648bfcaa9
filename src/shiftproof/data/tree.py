"""The folders below the root of a data set, none of which is listed twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from shiftproof.data.dataset import DataFolderError


class FolderError(DataFolderError):
    """A folder is missing, cannot be listed, or is not laid out as a data set."""


class Listing(NamedTuple):
    """The contents of a folder, without hidden names, which begin with a dot.

    Attributes:
        path: the folder.
        folders: names of the folders in it, sorted; links to folders are folders.
        files: names of the files in it, sorted.
    """

    path: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


class Tree:
    """Lists the folders below a root, and raises an error if pictures would silently be counted twice or lost.

    Links are followed, even out of the root. Reaching a real folder (device and inode) by two paths is an error, and
    so is a way back to a folder above the root, because its pictures would count twice.

    Attributes:
        root: an absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, Listing] = {}
        self._reached = {_identity(folder): folder for folder in root.resolve().parents}

    def listing(self, folder: Path) -> Listing:
        """List a folder, which is read only once.

        Raises:
            FolderError: the folder is missing, cannot be listed or was reached by another path, or a link in it
                leads nowhere.
        """
        if folder not in self._listings:
            first = self._reached.setdefault(_identity(folder), folder)
            if first != folder:
                raise FolderError(
                    f"{first} and {folder} are the same folder: its pictures would count twice; remove one"
                )
            self._listings[folder] = _listed(folder)
        return self._listings[folder]

    def walk(self, folder: Path) -> list[Listing]:
        """List a folder and all folders below it, in the order of torchvision's ImageFolder: by path as a string.

        Raises:
            FolderError: as for `listing`.
        """
        found, pending = [], [folder]
        while pending:
            listing = self.listing(pending.pop())
            found.append(listing)
            pending += [listing.path / name for name in listing.folders]
        return sorted(found, key=lambda listing: str(listing.path))


def _identity(folder: Path) -> tuple[int, int] | str:
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FolderError(f"{folder}: no such folder") from error
    except OSError as error:
        raise _closed(folder, error) from error
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)  # some systems lack inodes


def _listed(folder: Path) -> Listing:
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():  # opening anything else (pipes, sockets) would wait for it
                    files.append(entry.name)
                elif entry.is_symlink():
                    raise FolderError(f"{entry.path} is a broken link; fix or remove it")
    except NotADirectoryError as error:
        raise FolderError(f"{folder}: no such folder") from error
    except OSError as error:
        raise _closed(folder, error) from error
    return Listing(folder, tuple(sorted(folders)), tuple(sorted(files)))


def _closed(folder: Path, error: OSError) -> FolderError:
    return FolderError(f"{error.filename or folder} cannot be read: {error.strerror or error}")
