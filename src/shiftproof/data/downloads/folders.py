"""Data sets whose archives already hold folders of domains, and MNIST's files."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

from shiftproof.base.files import read_json, write_json
from shiftproof.data.downloads.archives import check_inside, removed_if_damaged, unpack
from shiftproof.data.downloads.http import RemoteFile, download


def fetch_folders(archives: Sequence[RemoteFile], inside: str, downloads: Path, folder: Path) -> list[str]:
    """Fetch archives and move their domains into a folder.

    An archive is removed once it is unpacked, and not fetched again if a later one is interrupted.

    Args:
        archives: the archives.
        inside: the folder of the domains in every archive; "." for the top.
        downloads: folder for the archives.
        folder: folder for the domains; created if need be.

    Returns:
        Remarks.

    Raises:
        DownloadError: an archive cannot be fetched.
        ArchiveError: one is damaged or holds unsafe names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in archives:
        unpacked = downloads / f"{file.name}.unpacked"  # the names of its domains
        if unpacked.exists() and all((folder / name).is_dir() for name in read_json(unpacked, "remove it")):
            continue
        archive = download(file, downloads)
        part = downloads / f"{file.name}.unpacking"
        shutil.rmtree(part, ignore_errors=True)
        unpack(archive, part)
        domains = [
            path
            for path in sorted((part / inside).iterdir())
            if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
        ]
        for domain in domains:
            shutil.rmtree(folder / domain.name, ignore_errors=True)  # left by a move that was interrupted
            domain.rename(folder / domain.name)
        write_json(unpacked, [domain.name for domain in domains])
        archive.unlink()
        shutil.rmtree(part)
    return []


def fetch_without_duplicates(
    archives: Sequence[RemoteFile], duplicates: RemoteFile, downloads: Path, folder: Path
) -> list[str]:
    """Fetch archives as `fetch_folders` does, and remove the images on a list, as DomainBed does for DomainNet.

    Args:
        archives: the archives, with the domains at their top.
        duplicates: a text file of paths `<domain>/<class>/<image>`, one per line.
        downloads: folder for the archives and the list.
        folder: folder for the domains; created if need be.

    Returns:
        Remarks: how many images were removed.

    Raises:
        DownloadError: a file cannot be fetched.
        ArchiveError: an archive is damaged, or an archive or the list holds unsafe names.
    """
    remarks = fetch_folders(archives, ".", downloads, folder)
    listing = download(duplicates, downloads)
    names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    for name in names:
        check_inside(name, listing)
    record = downloads / f"{duplicates.name}.removed"  # so that images removed by an interrupted call are counted
    before = read_json(record, "remove it") if record.exists() else []
    removed = sorted({*before, *(name for name in names if (folder / name).is_file())})
    write_json(record, removed)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    return [
        *remarks,
        f"{len(removed)} of the {len(names)} images on DomainBed's list of duplicates were there and removed",
    ]


def fetch_mnist(files: Sequence[RemoteFile], downloads: Path, folder: Path) -> list[str]:
    """Fetch MNIST's compressed idx files and unpack them into `<folder>/raw`, as torchvision does.

    Args:
        files: the files, named `<idx file>.gz`.
        downloads: folder for the compressed files.
        folder: folder of the result, which will be named MNIST in the end.

    Returns:
        Remarks.

    Raises:
        DownloadError: a file cannot be fetched.
        ArchiveError: one is damaged.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in files:
        packed = download(file, downloads)
        with removed_if_damaged(packed), gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return []
