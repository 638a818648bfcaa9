"""The choices for those fields of a study that have no registry."""

from __future__ import annotations

from typing import Literal, get_args

Averaging = Literal["none", "ema", "sma", "bma", "swad", "swad_released", "wise_ft", "dfr"]
Cache = Literal["none", "float16", "float32"]
ClassWeights = Literal["none", "balanced"]
ColumnType = Literal["number", "category"]
Combination = Literal["diwa", "diwa_greedy", "ensemble"]
"""What is made of several finished runs; it stands in the place of an averaging."""
Kind = Literal["photographs", "small_images", "vectors"]
"""What the examples are, which decides how they are prepared and which defaults apply."""
MissingLabels = Literal["error", "drop"]
Over = Literal["settings", "trials"]
"""The runs of a method and target that are combined: the settings of each trial, or those of all trials."""
PictureKind = Literal["photographs", "small_images"]
Precision = Literal["float32", "bf16"]
Sampling = Literal["uniform", "balanced"]
Schedule = Literal["constant", "cosine", "linear"]
Search = Literal["protocol", "short"]
SplitRule = Literal["random", "grouped"]
"""How a domain is split: at random in each class, or with near copies of a picture on one side."""
Task = Literal["classification", "multilabel", "regression"]
"""What is predicted: one class, several labels at once, or quantities."""
Tuning = Literal["per_target", "shared"]

COLUMN_TYPES: tuple[ColumnType, ...] = get_args(ColumnType)
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of data."""
OVERS: tuple[Over, ...] = get_args(Over)
PICTURES: tuple[PictureKind, ...] = get_args(PictureKind)
SPLIT_RULES: tuple[SplitRule, ...] = get_args(SplitRule)
"""The rules that split a domain into training and held-out examples."""
TASKS: tuple[Task, ...] = get_args(Task)
"""The tasks."""
