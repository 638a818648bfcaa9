"""Real data in this package, of people rather than of pictures: `vowels` and `heart_disease`.

Authors, licence and changes are beside the files, in embedded/README.md.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.field_error import FieldError
from shiftproof.data.dataset import DATASETS, DatasetEntry, DomainDataset, refuse_folder
from shiftproof.data.table import dataset_of_columns

_VOWELS = ("hid", "hId", "hEd", "hAd", "hYd", "had", "hOd", "hod", "hUd", "hud", "hed")
_HEART_CATEGORIES = ("sex", "cp", "fbs", "restecg", "exang", "slope", "thal")


def _columns(name: str, categories: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read an embedded table; columns that are not categories are numbers, NaN where one is missing."""
    text = files("shiftproof.data").joinpath("embedded", f"{name}.csv").read_text(encoding="utf-8")
    header, *rows = csv.reader(text.splitlines())
    columns: dict[str, NDArray[Any]] = {}
    for column, values in zip(header, zip(*rows, strict=True), strict=True):
        if column in categories:
            columns[column] = np.array([value or None for value in values], dtype=object)
        else:
            columns[column] = np.array([float(value) if value else np.nan for value in values])
    return columns


def _refuse_options(name: str, data_dir: Path | None, image_size: int | None) -> None:
    refuse_folder(name, data_dir)
    if image_size is not None:
        raise FieldError("image_size", f"{name} has no pictures: it takes no image size")


def vowels(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Eleven vowels by 15 speakers, who are the domains: 66 recordings each, ten numbers a recording (Deterding)."""
    _refuse_options("vowels", data_dir, image_size)
    columns = _columns("vowels", ("domain", "sex", "published_split", "vowel"))
    features = [f"f{i}" for i in range(10)]
    return dataset_of_columns("vowels", columns, domain="domain", labels=["vowel"], features=features, classes=_VOWELS)


def heart_disease(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Whether a coronary artery is narrow, in 920 patients of four hospitals, from 13 attributes (Janosi et al.)."""
    _refuse_options("heart_disease", data_dir, image_size)
    columns = _columns("heart_disease", ("domain", *_HEART_CATEGORIES))
    columns["chol"][columns["chol"] == 0] = np.nan  # nobody's cholesterol is 0: it was not measured
    return dataset_of_columns("heart_disease", columns, domain="domain", labels=["y"])


for _open in (vowels, heart_disease):
    DATASETS.register(_open.__name__, DatasetEntry(_open, kind="vectors", embedded=True, model="mlp"))
