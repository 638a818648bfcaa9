"""Domain data sets: their form, the embedded and folder data sets, splits and batches."""

from shiftproof.base.choices import KINDS, SPLIT_RULES, TASKS, Kind, SplitRule, Task
from shiftproof.data import digits as _digits  # noqa: F401 - registers its data sets
from shiftproof.data import embedded_tables as _embedded_tables  # noqa: F401 - registers its data sets
from shiftproof.data import mnist as _mnist  # noqa: F401 - registers its data sets
from shiftproof.data.augmentation import Augmentations, augment, draw_augmentations
from shiftproof.data.batches import batch_indices
from shiftproof.data.cache import CacheError, UnreadableImagesError
from shiftproof.data.check import check_data
from shiftproof.data.columns import Column, Preparation, number_columns
from shiftproof.data.dataset import DATASETS, DatasetEntry, DatasetNotFoundError, DomainDataset, Outline
from shiftproof.data.domain import Domain
from shiftproof.data.folder import DomainFiles, labelled_images, look_at_folder, open_folder
from shiftproof.data.images import ImageError, decode, to_pixels, upright
from shiftproof.data.kinds import Look
from shiftproof.data.splits import HOLDOUT_FRACTION, Split, grouped_split, random_split, split_domain
from shiftproof.data.transfer import on_device
from shiftproof.data.tree import FolderError
from shiftproof.data.user_table import TableFile, look_at_table, open_table

__all__ = [
    "DATASETS",
    "HOLDOUT_FRACTION",
    "KINDS",
    "SPLIT_RULES",
    "TASKS",
    "Augmentations",
    "CacheError",
    "Column",
    "DatasetEntry",
    "DatasetNotFoundError",
    "Domain",
    "DomainDataset",
    "DomainFiles",
    "FolderError",
    "ImageError",
    "Kind",
    "Look",
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
    "decode",
    "draw_augmentations",
    "grouped_split",
    "labelled_images",
    "look_at_folder",
    "look_at_table",
    "number_columns",
    "on_device",
    "open_folder",
    "open_table",
    "random_split",
    "split_domain",
    "to_pixels",
    "upright",
]
