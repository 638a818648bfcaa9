"""Data sets from what is read item by item: data sets of torch and of Hugging Face."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shiftproof.base.choices import PICTURES, Kind, Task
from shiftproof.base.registry import UnknownNameError
from shiftproof.base.text import one_line
from shiftproof.data.arrays import UNSEEN_SECONDS, as_array, from_arrays
from shiftproof.data.columns import Column
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.images import to_pixels
from shiftproof.data.kinds import GREY_MODES


def from_torch(
    name: str,
    dataset: Any,
    *,
    domain: Sequence[str] | Callable[[int, Any], str],
    group: Sequence[str | int] | Callable[[int, Any], str | int] | None = None,
    classes: Sequence[str] | None = None,
    kind: Kind | None = None,
    task: Task = "classification",
    image_size: int | None = None,
) -> DomainDataset:
    """Return the data set that a map-style `torch.utils.data.Dataset` holds. All its items are read into memory.

    Args:
        name: name of the data set.
        dataset: has a length and items that begin with input and target. An input is a picture of Pillow, a uint8
            tensor of shape (channels, height, width) or (height, width), or a vector. Targets are as in `from_arrays`.
        domain: the name of every item's domain, or a function of index and item that returns it. Domains are in the
            order of their names.
        group: the same for groups, texts or whole numbers: equal ones mark items of the same thing. None for no groups.
        classes: as in `from_arrays`; torchvision's data sets have them as `dataset.classes`.
        kind: as in `from_arrays`. Grey pictures get one channel, unless others are in colour or they are photographs.
        task: "classification", "multilabel" or "regression".
        image_size: side of the squares to which pictures are resized, in pixels; None if all have one size.

    Raises:
        ValueError: an item cannot be read or does not fit the others; the message has its index. Or what
            `from_arrays` raises.

    Examples:
        >>> import torch
        >>> from shiftproof.data import from_torch
        >>> rows = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.arange(12) % 2)
        >>> dataset = from_torch("sites", rows, domain=lambda index, item: f"site{index % 3}", classes=["well", "ill"])
        >>> [(domain.name, domain.inputs.shape) for domain in dataset.domains]
        [('site0', (4, 3)), ('site1', (4, 3)), ('site2', (4, 3))]
    """
    count = _count(name, dataset, "a map-style data set of torch")
    domain_of = _of_item(name, "domain", domain, count)
    group_of = None if group is None else _of_item(name, "group", group, count)

    def read(index: int) -> _Item:
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(f"it must begin with input and target, and is {_type(item)}")
        mark = None if group_of is None else _as_name(group_of(index, item), "its group", None)
        return _Item(domain_of(index, item), _input(item[0], kind, image_size), item[1], mark)

    return from_arrays(name, **_gathered(name, count, read, kind), classes=classes, kind=kind, task=task)


def from_huggingface(
    name: str,
    dataset: Any,
    *,
    image: str | None = None,
    features: Sequence[str] | None = None,
    label: str,
    domain: str,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    kind: Kind | None = None,
    task: Task = "classification",
    image_size: int | None = None,
) -> DomainDataset:
    """Return the data set that a `datasets.Dataset` of Hugging Face holds. Its rows are read into memory.

    Args:
        name: name of the data set.
        dataset: one split, a `datasets.Dataset`. Its format and its transforms do not matter: the columns are read as
            they are stored.
        image: the column of pictures: of `datasets.Image`, or arrays of whole numbers from 0 to 255, of shape
            (channels, height, width) or (height, width).
        features: the columns of numbers, or of categories where values have names; or one column of vectors. None is a
            missing value.
        label: the column of targets, which are as in `from_arrays`.
        domain: the column that names each row's domain. Domains are in the order of their names.
        group: the column whose equal values mark rows of the same thing; None for no groups.
        classes: as in `from_arrays`; None for the names that the label's column has, if it has some.
        kind: as in `from_torch`.
        task: "classification", "multilabel" or "regression".
        image_size: as in `from_torch`.

    Raises:
        ValueError: not just one of image and features is given, or a row cannot be read or does not fit the others;
            the message has its index. Or what `from_arrays` raises.
        UnknownNameError: a column is not there.
    """
    if isinstance(dataset, Mapping):
        parts = ", ".join(map(str, dataset))
        raise ValueError(  # noqa: TRY004
            f"data set {name} has the parts {parts}; give one of them, as dataset[{next(iter(dataset))!r}], or all by "
            "datasets.concatenate_datasets"
        )
    if not hasattr(dataset, "column_names"):
        raise ValueError(f"data set {name} must be a datasets.Dataset, not {_type(dataset)}")
    count = _count(name, dataset, "a data set of Hugging Face that is not streamed")
    if (image is None) == (features is None):
        raise ValueError(f"data set {name}: give the column image or the columns features, and not both")
    chosen = [features] if isinstance(features, str) else list(features or ())
    used = [column for column in (image, *chosen, label, domain, group) if column is not None]
    for column in used:
        if column not in dataset.column_names:
            raise UnknownNameError("column", column, list(dataset.column_names))
    if image is None and not chosen:
        raise ValueError(f"data set {name}: features names no column to predict from")
    if image is None and image_size is not None:
        raise ValueError(f"data set {name}: image_size is for pictures, which the column image names")
    if both := [column for column in (image, *chosen) if column in (label, domain)]:
        raise ValueError(f"data set {name}: column {both[0]} is a feature, and says the domain or the label too")
    domain_names = _names(dataset, domain)
    rows = dataset.with_format(None, columns=used)  # nothing else is decoded, and pictures stay pictures
    vectors = False  # whether the one column of features holds vectors, as the first row has it

    def read(index: int) -> _Item:
        nonlocal vectors
        row = rows[index]
        if image is not None:
            values = _input(_picture(row[image], image), kind, image_size)
        else:
            vectors = vectors or (not index and len(chosen) == 1 and _is_vector(row[chosen[0]]))
            values = _vector(row[chosen[0]], chosen[0]) if vectors else _numbers(row, chosen)
        of = _as_name(row[domain], f"column {domain}", domain_names)
        mark = None if group is None else _as_name(row[group], f"column {group}", None)
        return _Item(of, values, row[label], mark)

    gathered = _gathered(name, count, read, kind)
    if classes is None and task == "classification":
        classes = _names(dataset, label)
    columns = None
    if image is None and not vectors:
        columns = [Column(column, tuple(_names(dataset, column) or ())) for column in chosen]
    return from_arrays(name, **gathered, classes=classes, kind=kind, task=task, columns=columns)


class _Item(NamedTuple):
    """One row of a data set; its input is an array."""

    domain: str
    input: NDArray[Any]
    target: Any
    group: str | None = None


@dataclass
class _Rows:
    """The rows of a domain."""

    inputs: list[NDArray[Any]] = field(default_factory=list)
    targets: list[NDArray[Any]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def _of_item(
    name: str, what: str, given: Sequence[Any] | Callable[[int, Any], Any], count: int
) -> Callable[[int, Any], Any]:
    """Return a function of index and item that returns an item's domain or group.

    Raises:
        ValueError: it is given as a sequence that has not one for each item.
    """
    if callable(given):
        return given
    if isinstance(given, str) or len(given) != count:
        found = "one text" if isinstance(given, str) else f"{len(given):,} names"
        raise ValueError(f"data set {name}: {what} must name the {what} of each of {count:,} items, not {found}")
    names = list(given)
    return lambda index, item: names[index]


def _count(name: str, dataset: Any, wanted: str) -> int:
    try:
        count = len(dataset)
    except TypeError as error:
        raise ValueError(f"data set {name} must be {wanted}: {_type(dataset)} has no length") from error
    if not count:
        raise ValueError(f"data set {name} has no items")
    return count


def _gathered(name: str, count: int, read: Callable[[int], _Item], kind: Kind | None) -> dict[str, Any]:
    """Read all items, and return the domains and groups for `from_arrays`.

    Raises:
        ValueError: an item cannot be read or does not fit those before it; the message has its index.
    """
    from tqdm import tqdm

    rows: dict[str, _Rows] = {}
    first: _Item | None = None
    channels = 3 if kind == "photographs" else 1
    for index in tqdm(range(count), f"reading {name}", unit="item", delay=UNSEEN_SECONDS, leave=False):
        try:
            item = read(index)
            item = item._replace(target=as_array(item.target, "target"))
            first = first or item
            _check(item, first)
        except Exception as error:  # others read their items as they like, and decoders raise errors of many types
            raise ValueError(f"data set {name}: item {index}: {_reason(error)}") from error
        if _is_picture(item.input):
            channels = max(channels, len(item.input))
        mine = rows.setdefault(str(item.domain), _Rows())
        mine.inputs.append(item.input)
        mine.targets.append(item.target)
        mine.groups += [] if item.group is None else [item.group]
    domains, groups = {}, {}
    for domain in sorted(rows):
        mine = rows.pop(domain)  # so that not all is held twice
        domains[domain] = _stacked(mine.inputs, channels), np.stack(mine.targets)
        if mine.groups:
            groups[domain] = np.array(mine.groups, dtype=object)
    return {"domains": domains, "groups": groups or None}


def _is_picture(row: NDArray[Any]) -> bool:
    return row.dtype == np.uint8 and row.ndim == 3


def _check(item: _Item, first: _Item) -> None:
    """Check that an item has a domain and the shapes of the first one; grey pictures go with those in colour.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(item.domain, str):
        raise ValueError(  # noqa: TRY004
            f"its domain is {item.domain!r}, and must be a str, not {_type(item.domain)}: str(domain)"
        )
    mine, others = item.input, first.input
    pictures = [_is_picture(mine), _is_picture(others)]
    if all(pictures) and mine.shape[1:] != others.shape[1:]:
        sizes = [f"{one.shape[2]} x {one.shape[1]} pixels" for one in (mine, others)]
        raise ValueError(f"it has {sizes[0]}, and item 0 has {sizes[1]}; give image_size to make all squares of a size")
    grey = all(pictures) and {len(mine), len(others)} <= {1, 3}
    if pictures[0] != pictures[1] or (mine.shape != others.shape and not grey):
        raise ValueError(
            f"its input is {mine.dtype} of shape {mine.shape}, and that of item 0 {others.dtype} of shape "
            f"{others.shape}; make all the same"
        )
    text, others_text = (one.target.dtype.kind in "UTO" for one in (item, first))
    if item.target.shape != first.target.shape or text != others_text:
        remedy = "give 1 or 0 for every label" if item.target.ndim == first.target.ndim == 1 else "make all the same"
        raise ValueError(
            f"its target is {item.target.tolist()!r}, and that of item 0 {first.target.tolist()!r}; {remedy}"
        )


def _stacked(rows: list[NDArray[Any]], channels: int) -> NDArray[Any]:
    """Return rows as one array; the channel of grey pictures among pictures in colour is repeated."""
    shape = rows[0].shape
    if _is_picture(rows[0]) and shape[0] in (1, 3):
        shape = (channels, *shape[1:])
    whole = np.empty((len(rows), *shape), dtype=np.result_type(*{row.dtype for row in rows}))
    for i, row in enumerate(rows):
        whole[i] = row
    return whole


def _input(value: Any, kind: Kind | None, image_size: int | None) -> NDArray[Any]:
    """Return a picture as uint8, shape (channels, height, width), or a vector, shape (size,)."""
    if isinstance(value, Image.Image):
        return to_pixels(value, image_size, 1 if value.mode in GREY_MODES and kind != "photographs" else 3)
    values = np.atleast_1d(as_array(value, "input"))
    if values.dtype == np.uint8 and values.ndim in (2, 3):
        pixels = values[None] if values.ndim == 2 else values
        return pixels if image_size is None else _resized(pixels, image_size)
    floats = values.dtype.kind == "f" and values.ndim == 3 and len(values) in (1, 3)
    if kind in PICTURES or (floats and kind is None):
        raise ValueError(
            f"its picture is {values.dtype} of shape {values.shape}, and must be uint8, (channels, height, width): "
            "leave the transforms ToTensor and Normalize out, or use PILToTensor; if it is none, say kind='vectors'"
        )
    if image_size is not None:
        raise ValueError(f"its input is {values.dtype} of shape {values.shape}, and image_size is for pictures")
    return values


def _resized(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(pixels) not in (1, 3):
        raise ValueError(f"its picture has shape {pixels.shape}, and must have (1 or 3, height, width) to be resized")
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return to_pixels(image, size, 1 if len(pixels) == 1 else 3)


def _picture(value: Any, column: str) -> Any:
    """Return what a column of pictures holds, as a picture of Pillow or as uint8."""
    if value is None:
        raise ValueError("it has no picture")
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if content is None:
            if not value.get("path"):
                raise ValueError("its picture has neither bytes nor a path")
            content = Path(value["path"]).read_bytes()
        return Image.open(io.BytesIO(content))
    pixels = as_array(value, f"column {column}")
    if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3) or pixels.min() < 0 or pixels.max() > 255:
        found = f"{pixels.dtype} of shape {pixels.shape}" if pixels.ndim else _type(value)
        raise ValueError(
            f"column {column} is {found}, and must be a picture: dataset.cast_column({column!r}, datasets.Image()) "
            "for paths and bytes; of an array, whole numbers from 0 to 255, (channels, height, width)"
        )
    return pixels.astype(np.uint8)


def _is_vector(value: Any) -> bool:
    return not isinstance(value, str) and np.ndim(value) > 0


def _vector(value: Any, column: str) -> NDArray[Any]:
    """Return a vector, NaN where a value is missing."""
    if isinstance(value, Image.Image):
        raise ValueError(f"column {column} is a picture: name it as image, not among features")  # noqa: TRY004
    values = as_array(value, f"column {column}")
    if not values.ndim:
        raise ValueError(f"column {column} is {value!r}, and must be a vector")
    return values.astype(np.float64) if values.dtype == object else values


def _numbers(row: Mapping[str, Any], columns: Sequence[str]) -> NDArray[np.float64]:
    """Return columns of a row as numbers, NaN where a value is missing."""
    numbers = np.full(len(columns), math.nan)
    for i, column in enumerate(columns):
        value = row[column]
        if value is None:
            continue
        if not hasattr(value, "__float__") or np.ndim(value):
            raise ValueError(f"column {column} is {value!r}, and must be a number")
        numbers[i] = value
    return numbers


def _names(dataset: Any, column: str) -> list[str] | None:
    """Return the names of a column's whole numbers; None if it has none."""
    described = (getattr(dataset, "features", None) or {}).get(column)
    names: list[str] | None = getattr(described, "names", None)
    return names


def _as_name(value: Any, whose: str, names: Sequence[str] | None) -> str:
    """Return a text, or a whole number as its name or its digits."""
    if isinstance(value, str):
        return value
    number = as_array(value, whose)
    if number.ndim or number.dtype.kind not in "biu":
        raise ValueError(f"{whose} is {value!r}, and must be a text or a whole number")
    if names is None:
        return str(number.item())
    if not 0 <= number < len(names):
        raise ValueError(f"{whose} is {value}, and names {len(names)} values, numbered from 0")
    return names[int(number)]


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its picture is empty or of no known format"
    text, kind = one_line(str(error)), type(error).__name__
    return text if text and isinstance(error, ValueError | OSError) else f"{kind}: {text}" if text else kind


def _type(value: object) -> str:
    return type(value).__name__
