"""Checks a user's table: its rows by domain and class, and what its columns hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shiftproof.base.text import one_line
from shiftproof.data.check import aligned, dataset_table
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.user_table import TableFile, open_table


@dataclass(frozen=True)
class TableCheck:
    """What a table holds.

    Attributes:
        table: the table.
        dataset: the data set that it was opened as.
    """

    table: TableFile
    dataset: DomainDataset

    def text(self) -> str:
        """Return a report: rows by domain and class, then the columns."""
        lines = [f"{self.table.file}", "", *dataset_table(self.dataset), ""]
        if self.dataset.columns is not None:
            lines += [*self._columns(), ""]
        lines.append(f"rows without a label, left out: {self.dataset.left_out}")
        return "\n".join(map(one_line, lines))

    def _columns(self) -> list[str]:
        rows = [["column", "values", "missing"]]
        for i, column in enumerate(self.dataset.columns or ()):
            values = np.concatenate([domain.inputs[:, i] for domain in self.dataset.domains])
            known = values[~np.isnan(values)]
            text = f"{len(column.categories)} categories"
            if not column.categories:
                text = f"{known.min():.6g} to {known.max():.6g}" if len(known) else "none"
            rows.append([column.name, text, str(len(values) - len(known))])
        return aligned(rows)


def check_table(table: TableFile) -> TableCheck:
    """Open a table as training does, and count what it holds. Every picture that it names is decoded.

    Raises:
        FieldError: as `open_table`.
    """
    return TableCheck(table, open_table(table))
