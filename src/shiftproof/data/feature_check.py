"""Checks a feature set: that it is as it was written, what made it, and its rows by domain and class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shiftproof.base.text import one_line
from shiftproof.data.check import dataset_table
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.feature_set import open_features


@dataclass(frozen=True)
class FeatureCheck:
    """What a feature set holds.

    Attributes:
        root: its folder.
        dataset: the data set that it was opened as.
    """

    root: Path
    dataset: DomainDataset

    def text(self) -> str:
        """Return a report: rows by domain and class, then the features and what computed them."""
        [size] = self.dataset.input_shape
        lines = [
            f"{self.root}",
            "",
            *dataset_table(self.dataset),
            "",
            f"{self.dataset.name}: {size} features of {self.dataset.encoder}",
            "its files are as they were written",
        ]
        return "\n".join(map(one_line, lines))


def check_features(folder: Path) -> FeatureCheck:
    """Open a feature set as training does, and count what it holds.

    Raises:
        FeatureSetError: as `open_features`.
    """
    return FeatureCheck(folder, open_features(folder))
