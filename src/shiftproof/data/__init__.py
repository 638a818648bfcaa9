"""Domain data sets: their form, the embedded and folder data sets, splits and batches."""

from shiftproof.base.choices import KINDS, SPLIT_RULES, TASKS, Kind, SplitRule, Task
from shiftproof.data import digits as _digits  # noqa: F401 - registers its data sets
from shiftproof.data import embedded_tables as _embedded_tables  # noqa: F401 - registers its data sets
from shiftproof.data import mnist as _mnist  # noqa: F401 - registers its data sets
from shiftproof.data.arrays import from_arrays
from shiftproof.data.augmentation import Augmentations, augment, draw_augmentations
from shiftproof.data.augmentations import AUGMENTATIONS, Augmentation
from shiftproof.data.batches import batch_indices
from shiftproof.data.cache import CacheError, UnreadableImagesError
from shiftproof.data.check import check_data
from shiftproof.data.class_vectors import ClassVectors, read_class_vectors
from shiftproof.data.columns import Column, Preparation, number_columns
from shiftproof.data.dataset import DATASETS, DatasetEntry, DatasetNotFoundError, DomainDataset, Outline
from shiftproof.data.domain import Domain
from shiftproof.data.feature_check import check_features
from shiftproof.data.feature_set import (
    Encoder,
    FeatureSetError,
    check_free,
    is_feature_set,
    open_features,
    write_features,
)
from shiftproof.data.folder import DomainFiles, labelled_images, look_at_folder, open_folder, pictures_below
from shiftproof.data.images import ImageError, decode, to_pixels, upright
from shiftproof.data.items import from_huggingface, from_torch
from shiftproof.data.kinds import Look
from shiftproof.data.labelled_table import labelled_table
from shiftproof.data.labels_file import labelled_files
from shiftproof.data.new_rows import NewRows, read_new_rows
from shiftproof.data.splits import HOLDOUT_FRACTION, Split, grouped_split, random_split, split_domain
from shiftproof.data.table_check import check_table
from shiftproof.data.table_file import TABLE_SUFFIXES
from shiftproof.data.transfer import on_device
from shiftproof.data.tree import FolderError
from shiftproof.data.user_table import TableFile, look_at_table, open_table

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "HOLDOUT_FRACTION",
    "KINDS",
    "SPLIT_RULES",
    "TABLE_SUFFIXES",
    "TASKS",
    "Augmentation",
    "Augmentations",
    "CacheError",
    "ClassVectors",
    "Column",
    "DatasetEntry",
    "DatasetNotFoundError",
    "Domain",
    "DomainDataset",
    "DomainFiles",
    "Encoder",
    "FeatureSetError",
    "FolderError",
    "ImageError",
    "Kind",
    "Look",
    "NewRows",
    "Outline",
    "Preparation",
    "Split",
    "SplitRule",
    "TableFile",
    "Task",
    "UnreadableImagesError",
    "augment",
    "batch_indices",
    "check_data",
    "check_features",
    "check_free",
    "check_table",
    "decode",
    "draw_augmentations",
    "from_arrays",
    "from_huggingface",
    "from_torch",
    "grouped_split",
    "is_feature_set",
    "labelled_files",
    "labelled_images",
    "labelled_table",
    "look_at_folder",
    "look_at_table",
    "number_columns",
    "on_device",
    "open_features",
    "open_folder",
    "open_table",
    "pictures_below",
    "random_split",
    "read_class_vectors",
    "read_new_rows",
    "split_domain",
    "to_pixels",
    "upright",
    "write_features",
]
