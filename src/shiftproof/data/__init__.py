"""Domain data sets: their form, the embedded and folder data sets, splits and batches."""

from shiftproof.base.choices import KINDS, SPLIT_RULES, Kind, SplitRule
from shiftproof.data import digits as _digits  # noqa: F401 - registers its data sets
from shiftproof.data import mnist as _mnist  # noqa: F401 - registers its data sets
from shiftproof.data.augmentation import Augmentations, augment, draw_augmentations
from shiftproof.data.batches import batch_indices
from shiftproof.data.cache import CacheError, UnreadableImagesError
from shiftproof.data.check import check_data
from shiftproof.data.dataset import DATASETS, DatasetEntry, DatasetNotFoundError, Domain, DomainDataset, Outline
from shiftproof.data.folder import DomainFiles, labelled_images, look_at_folder, open_folder
from shiftproof.data.images import ImageError, decode, to_pixels, upright
from shiftproof.data.kinds import Look
from shiftproof.data.splits import HOLDOUT_FRACTION, Split, grouped_split, random_split, split_domain
from shiftproof.data.transfer import on_device
from shiftproof.data.tree import FolderError

__all__ = [
    "DATASETS",
    "HOLDOUT_FRACTION",
    "KINDS",
    "SPLIT_RULES",
    "Augmentations",
    "CacheError",
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
    "Split",
    "SplitRule",
    "UnreadableImagesError",
    "augment",
    "batch_indices",
    "check_data",
    "decode",
    "draw_augmentations",
    "grouped_split",
    "labelled_images",
    "look_at_folder",
    "on_device",
    "open_folder",
    "random_split",
    "split_domain",
    "to_pixels",
    "upright",
]
