"""The index of a store: a cache of rows, valid while the results that they were made of are unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shiftproof.base.files import is_local, locked
from shiftproof.studies.results import Row, RowKey, row_key
from shiftproof.training import RESULT_FILE

INDEX_FILE = "index.jsonl"
"""The index of a store: rows already made of its results."""
INDEX_VERSION = 4
"""Increment it when code makes another row of the same result, so that no table uses rows of earlier code."""

Stamp = tuple[int, float] | None
"""Size in bytes and time of change of a result's file, to notice changes; None if there is no file."""


class Index:
    """Rows of a store, each with the stamps of the results that it was made of.

    It only saves time: rows whose results changed and unreadable lines are ignored, and without the file all results
    are read. A run has a row for every measure that selected its step, so that tables may switch between measures.
    Object stores have no index, because they cannot append to a file.

    Args:
        root: the store's folder.
        rules: the selection rules of the rows, each with the digest of the plug-in that it is of: empty for the
            built-in ones, and None if it is not imported here. Rows by a rule that is not imported stay valid as long
            as their results' sizes do, so that a store copied to a machine without the plug-in is still read.
        used: False neither reads nor writes it.
    """

    def __init__(self, root: Path, rules: Mapping[str, str | None], *, used: bool = True) -> None:
        self._rules = {name: digest for name, digest in rules.items() if digest != ""}
        self._names = tuple(rules)
        self._file, self._runs, self._local = root / INDEX_FILE, root / "runs", used and is_local(root)
        self._rows: dict[tuple[RowKey, str], tuple[list[Stamp], Row]] = {}
        self._stamps: dict[str, Stamp] = {}
        if self._local and self._file.exists():
            with self._file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    self._take(line)

    def _take(self, line: str) -> None:
        try:
            version, stamps, row, *more = json.loads(line)
            digests = more[0] if more else {}
            known = all(digest in (None, digests[name]) for name, digest in self._rules.items())
            # later lines replace earlier ones
            if version == INDEX_VERSION and tuple(row["selection"]) == self._names and known:
                held: list[Stamp] = [stamp and (stamp[0], stamp[1]) for stamp in stamps]
                self._rows[row_key(row), row["metric"]] = held, row
        except (ValueError, TypeError, LookupError):  # a line that a crash cut short
            return

    def stamps(self, names: Iterable[str]) -> list[Stamp]:
        """Return the stamps of runs' results, taken when first asked for."""
        return [self._stamp(name) for name in names]

    def _stamp(self, name: str) -> Stamp:
        if name not in self._stamps:
            try:
                found = (self._runs / name / RESULT_FILE).stat() if self._local else None
            except FileNotFoundError:
                found = None
            self._stamps[name] = found and (found.st_size, found.st_mtime)
        return self._stamps[name]

    def row(self, key: RowKey, metric: str, names: Iterable[str]) -> Row | None:
        """Return the row of a run at one place of a study; None if the results that it was made of have changed.

        Args:
            key: the place.
            metric: the measure that selects.
            names: names of the runs whose results it is made of, its own first.
        """
        stamps, row = self._rows.get((key, metric), (None, None))
        if row is None or stamps is None:
            return None
        now = self.stamps(names)
        if None in self._rules.values():
            stamps, now = [_sized(stamp) for stamp in stamps], [_sized(stamp) for stamp in now]
        return row if stamps == now else None

    def append(self, entries: Sequence[tuple[list[Stamp], Row]]) -> None:
        """Write rows for the next reader, unless another process is writing or the store cannot be written."""
        if not entries or not self._local or None in self._rules.values():
            return
        more = [self._rules] if self._rules else []
        text = "".join(json.dumps([INDEX_VERSION, stamps, row, *more]) + "\n" for stamps, row in entries)
        try:
            with locked(self._file.with_name(f".{INDEX_FILE}.lock")), self._file.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            return


def _sized(stamp: Stamp) -> Stamp:
    """Return a stamp without its time."""
    return stamp and (stamp[0], 0.0)
