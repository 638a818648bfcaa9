"""Fetching a published data set: whole or not there, and continued where it was interrupted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shiftproof.base.files import locked, read_json, write_json
from shiftproof.data.check import counts_table
from shiftproof.data.downloads.sources import SOURCES

RECORD = "source.json"


@dataclass(frozen=True)
class Obtained:
    """A data set that was fetched.

    Attributes:
        root: its folder.
        fetched: whether this call fetched it; False where it was there.
        counts: number of images by domain and class (of MNIST: by part and digit).
        differences: from what is published, in words.
        remarks: how it was made, and what of it could not be cleaned up.
    """

    root: Path
    fetched: bool
    counts: dict[str, dict[str, int]]
    differences: tuple[str, ...]
    remarks: tuple[str, ...]

    def text(self) -> str:
        """Return what is there, as a table and words."""
        lines = [*counts_table(self.counts), *self.remarks]
        lines += [f"differs from what is published: {difference}" for difference in self.differences]
        return "\n".join([*lines, f"{'written' if self.fetched else 'it is there already'}: {self.root}"])


def get_dataset(name: str, output: Path) -> Obtained:
    """Fetch a published data set into `<output>/<its folder>`, where `shiftproof.data` opens it.

    The folder appears when it is whole, with its source, date, counts and terms in `source.json`. Until then the
    work is in `<its folder>.downloads` and `<its folder>.partial`, which the next call continues; progress goes to
    the standard error. Counts that differ from what is published do not keep a data set from being finished.

    Args:
        name: one of `SOURCES`.
        output: created if need be.

    Raises:
        UnknownNameError: there is no such data set.
        FileExistsError: the folder is there and was not made by this function.
        DownloadError: a file cannot be fetched.
        ArchiveError: an archive is damaged or unsafe.
        FolderError: a class is missing or empty in a domain, so that the data set could not be opened.
        ValueError: files are not of the expected form, or a library is not installed.
    """
    source = SOURCES[name]
    root, downloads = output / source.folder, output / f"{source.folder}.downloads"
    part = output / f"{source.folder}.partial"
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / f".{source.folder}.lock", f"{source.title}: waiting for another process that fetches it"):
        fetched = not (root / RECORD).exists()
        if fetched:
            if root.exists():
                raise FileExistsError(
                    f"{root} is there and was not fetched by this command; see `shiftproof data check`"
                )
            remarks = source.fetch(downloads, part)
            counts, differences = source.count(part)
            record = {
                "data set": source.title,
                "source": source.origin,
                "terms": source.terms,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "counts": counts,
                "differences": differences,
                "notes": source.notes,
                "remarks": remarks,
            }
            write_json(part / RECORD, record)
            part.replace(root)
        left = _remove(downloads)
    written = read_json(root / RECORD, f"remove {root} and fetch it again")
    return Obtained(root, fetched, written["counts"], tuple(written["differences"]), (*written["remarks"], *left))


def _remove(downloads: Path) -> list[str]:
    """Remove the folder of the downloads, and return a remark if that cannot be done."""
    try:
        shutil.rmtree(downloads)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{downloads} is no longer needed and could not be removed: {error}"]
    return []
