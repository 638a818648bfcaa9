"""Fetches a published data set. Its folder appears only when complete, and interrupted downloads continue."""

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
        fetched: whether this call fetched it; False if it was there already.
        counts: number of images by domain and class (for MNIST by part and digit).
        differences: differences from the published data set, in words.
        remarks: how it was made, and what could not be cleaned up.
    """

    root: Path
    fetched: bool
    counts: dict[str, dict[str, int]]
    differences: tuple[str, ...]
    remarks: tuple[str, ...]

    def text(self) -> str:
        """Return the counts as a table, followed by remarks and differences."""
        lines = [*counts_table(self.counts), *self.remarks]
        lines += [f"differs from the published data set: {difference}" for difference in self.differences]
        return "\n".join([*lines, f"{'written' if self.fetched else 'it is there already'}: {self.root}"])


def get_dataset(name: str, output: Path) -> Obtained:
    """Fetch a published data set into `<output>/<its folder>`, where `shiftproof.data` opens it.

    The folder appears when complete, with its source, date, counts and terms in `source.json`. Until then the work is
    in `<its folder>.downloads` and `<its folder>.partial`, which the next call continues. Progress goes to the
    standard error. Counts that differ from the published ones do not stop the data set from being completed.

    Args:
        name: one of `SOURCES`.
        output: folder of data sets; created if need be.

    Raises:
        UnknownNameError: the data set is unknown.
        FileExistsError: the folder exists and was not made by this function.
        DownloadError: a file cannot be fetched.
        ArchiveError: an archive is damaged or unsafe.
        FolderError: a class is missing or empty in a domain, so that the data set could not be opened.
        ValueError: files do not have the expected format, or a library is not installed.
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
                    f"{root} exists already and was not fetched by this command; see `shiftproof data check`"
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
    """Remove the folder of the downloads, and return a remark if that fails."""
    try:
        shutil.rmtree(downloads)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{downloads} is no longer needed and could not be removed: {error}"]
    return []
