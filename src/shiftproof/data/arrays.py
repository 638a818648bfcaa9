"""Data sets from arrays of Python: what loses nothing is converted, the rest is refused with the remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shiftproof.base.choices import KINDS, TASKS, Kind, Task
from shiftproof.base.registry import UnknownNameError
from shiftproof.base.text import one_line
from shiftproof.data.columns import Column
from shiftproof.data.dataset import DomainDataset
from shiftproof.data.domain import Domain
from shiftproof.data.kinds import SMALL_SIDE

UNSEEN_SECONDS = 2
"""What takes less long shows no progress."""
_HASHED_AT_ONCE = 1 << 24
_EXACT = 2**24  # up to here float32 holds every whole number


def from_arrays(
    name: str,
    domains: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    classes: Sequence[str] | None = None,
    kind: Kind | None = None,
    task: Task = "classification",
    groups: Mapping[str, ArrayLike] | None = None,
    columns: Sequence[Column | str] | None = None,
) -> DomainDataset:
    """Return the data set that arrays hold: of numpy, tensors on the CPU, or anything that numpy makes an array of.

    Vectors and quantities become float32; classes, labels and groups int64. Pictures and vectors of float32 are not
    copied, so those that are mapped from a file stay there.

    Args:
        name: name of the data set.
        domains: for every domain, in order, its inputs and targets. Inputs are pictures, uint8 of shape (n, channels,
            height, width), or vectors of shape (n, size), NaN where a value is missing. Targets have shape (n,): whole
            numbers or names of classes; numbers for a regression. Of a multilabel task they have shape (n, labels),
            1 or True where a label applies.
        classes: names of the classes, in order; labels that are numbers are indices into them. None for the labels
            that there are, sorted. Names of the labels of a multilabel task, or of the quantity of a regression.
        kind: kind of the inputs; None to infer it. Pictures are "small_images" if no side is longer than 64 pixels, or
            if they are not square or not of three channels, else "photographs". All other inputs are "vectors".
        task: "classification", "multilabel" or "regression".
        groups: for every domain, whole numbers or texts of shape (n,): equal ones mark rows of the same thing.
        columns: what the columns of vectors are; a text names a column of numbers.

    Raises:
        ValueError: something cannot be converted without loss, or is no data set; the message names the domain and says
            how to convert it.
        UnknownNameError: a label is not among the classes, groups are of an unknown domain, or kind or task is unknown.

    Examples:
        >>> import numpy as np
        >>> from shiftproof.data import from_arrays
        >>> clinics = {name: (np.random.rand(10, 4), np.arange(10) % 2) for name in ("north", "south")}
        >>> dataset = from_arrays("clinics", clinics, classes=["well", "ill"])
        >>> dataset.kind, dataset.classes, [len(domain) for domain in dataset.domains]
        ('vectors', ('well', 'ill'), [10, 10])
    """
    if not isinstance(domains, Mapping) or not domains:
        raise ValueError(f"data set {name}: domains must be a dict of one domain or more: name: (inputs, targets)")
    if isinstance(classes, str):
        raise ValueError(f"data set {name}: classes must be names, as in ({classes!r},), not one text")  # noqa: TRY004
    if task not in TASKS:
        raise UnknownNameError("task", task, list(TASKS))
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, list(KINDS))
    given = None if classes is None else tuple(map(_plain, classes))
    arrays = {_plain(key): _pair(key, value) for key, value in domains.items()}
    kind = kind or _inferred(*next((key, inputs) for key, (inputs, _) in arrays.items()))
    inputs = {key: _inputs(f"inputs of domain {key}", pair[0], kind) for key, pair in arrays.items()}
    raw = {key: pair[1] for key, pair in arrays.items()}
    if task == "classification":
        targets, named = _class_indices(raw, given)
    else:
        convert = _quantities if task == "regression" else _truths
        targets = {key: convert(f"targets of domain {key}", values) for key, values in raw.items()}
        named = _default_names(task, targets) if given is None else given
    numbered = _groups(groups, list(arrays))
    parts = tuple(Domain(key, inputs[key], targets[key], numbered.get(key)) for key in arrays)
    described = None if columns is None else tuple(Column(one) if isinstance(one, str) else one for one in columns)
    digest = _fingerprint(name, parts, (named, kind, task, described))
    return DomainDataset(name, parts, named, kind, digest, None, task, described)


def as_array(values: object, whose: str) -> NDArray[Any]:
    """Return values as an array, without a copy where there is one already.

    Args:
        values: an array, a tensor or anything that numpy makes an array of.
        whose: what they are, for the error, such as "inputs of domain a".

    Raises:
        ValueError: no array can be made of them, or a part of them would be lost.
    """
    word = whose.partition(" ")[0]
    if isinstance(values, torch.Tensor):
        if values.device.type != "cpu":
            raise ValueError(f"{whose} must be on the CPU, not on {values.device}: {word}.cpu()")
        if values.layout != torch.strided:
            raise ValueError(f"{whose} must be dense, not sparse: {word}.to_dense()")
        if values.dtype == torch.bfloat16:  # which numpy does not know
            values = values.float()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{whose} must not be masked, because numpy drops masks: {word}.filled(np.nan) for vectors")
    try:
        return np.asarray(values.numpy(force=True) if isinstance(values, torch.Tensor) else values)
    except Exception as error:  # of many types, by what the values are
        raise ValueError(f"{whose} cannot be made an array: {one_line(str(error))}") from error


def _pair(domain: str, value: object) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"domain {domain} must be a pair (inputs, targets), not {type(value).__name__}")
    arrays = []
    for word, values in zip(("inputs", "targets"), value, strict=True):
        array = as_array(values, whose := f"{word} of domain {domain}")
        if not array.ndim:
            raise ValueError(f"{whose} must be an array with a row per input, not {type(values).__name__}")
        if not len(array):
            raise ValueError(f"{whose} hold no rows; leave the domain out")
        arrays.append(array)
    return arrays[0], arrays[1]


def _inferred(domain: str, inputs: NDArray[Any]) -> Kind:
    """Return the kind of inputs, from those of the first domain.

    Raises:
        ValueError: they look like pictures that were made floats.
    """
    shape = inputs.shape[1:]
    if inputs.dtype == np.uint8 and len(shape) == 3:
        channels, height, width = shape
        photographs = max(height, width) > SMALL_SIDE and height == width and channels == 3
        return "photographs" if photographs else "small_images"
    channels_first = inputs.dtype.kind == "f" and len(shape) == 3 and shape[0] in (1, 3) and inputs.size
    if channels_first and inputs.min() >= 0 and inputs.max() <= 1:
        raise ValueError(
            f"inputs of domain {domain} look like pictures with values in [0, 1], which must be uint8: "
            "(inputs * 255).round().astype(np.uint8); if they are none, say kind='vectors'"
        )
    return "vectors"


def _inputs(whose: str, inputs: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Return inputs as `Domain` has them, where nothing is lost; what else is wrong with them it says itself."""
    if inputs.dtype.kind not in "fiub":
        raise ValueError(f"{whose} must be numbers, not {inputs.dtype}")
    if kind != "vectors" or (inputs.dtype.kind != "f" and inputs.ndim != 2):
        return inputs
    return _as_float32(whose, inputs)


def _as_float32(whose: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as float32; floats are rounded, whole numbers must be exact.

    Raises:
        ValueError: a number is too large.
    """
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32, copy=False)
    too_large = np.zeros(0, dtype=np.bool_)
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        too_large = (values > _EXACT) | (values < -_EXACT)
        remedy = f"is beyond {_EXACT}, up to which float32 holds every whole number; make them floats if that will do"
    elif values.dtype.kind == "f" and values.dtype.itemsize > 4:
        too_large = np.isinf(converted) & np.isfinite(values)
        remedy = "is too large for float32; divide by a power of ten"
    if too_large.any():
        place = tuple(int(one[0]) for one in too_large.nonzero())
        raise ValueError(f"{whose}: row {place[0]} holds {values[place]}, which {remedy}")
    return converted


def _class_indices(
    targets: Mapping[str, NDArray[Any]], classes: tuple[str, ...] | None
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Return labels as indices of classes, and the classes' names."""
    labels = {key: _labels(key, values) for key, values in targets.items()}
    texts = [key for key, values in labels.items() if values.dtype == object]
    if texts and len(texts) < len(labels):
        other = next(key for key in labels if key not in texts)
        raise ValueError(f"targets of domain {texts[0]} are texts, those of domain {other} numbers; make all the same")
    if not texts:
        if classes is not None:
            return labels, classes
        found = np.unique(np.concatenate([np.unique(values) for values in labels.values()]))
        if low := next((key for key, values in labels.items() if (values < 0).any()), None):
            raise ValueError(
                f"targets of domain {low} are negative: leave out rows without a class, and number the classes from 0"
            )
        return {key: np.searchsorted(found, v) for key, v in labels.items()}, tuple(map(str, found.tolist()))
    seen = {key: set(values.tolist()) for key, values in labels.items()}
    named = tuple(sorted({text for values in seen.values() for text in values})) if classes is None else classes
    for key, values in seen.items():
        if unknown := sorted(values.difference(named)):
            raise UnknownNameError(f"class of domain {key}", unknown[0], list(named))
    number = {text: i for i, text in enumerate(named)}
    return {k: np.array([number[one] for one in v.tolist()], dtype=np.int64) for k, v in labels.items()}, named


def _labels(domain: str, targets: NDArray[Any]) -> NDArray[Any]:
    """Return labels as int64 or, if they are texts, as objects."""
    whose = f"targets of domain {domain}"
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise ValueError(
            f"{whose} must have shape ({len(targets)},), one class per row, not {targets.shape}: "
            "targets.argmax(axis=1) for ones and zeros per class, or task='multilabel'"
        )
    if targets.dtype.kind in "biu":
        return _as_int64(whose, targets)
    if targets.dtype.kind in "UTO":
        return _texts(whose, targets)
    remedy = "targets.astype(str)" if targets.dtype.kind == "S" else "targets.astype(np.int64), if they are whole"
    also = "; or task='regression'" if targets.dtype.kind == "f" else ""
    raise ValueError(f"{whose} must be whole numbers or names of classes, not {targets.dtype}: {remedy}{also}")


def _texts(whose: str, values: NDArray[Any]) -> NDArray[np.object_]:
    texts = values.astype(object)
    for row, text in enumerate(texts.tolist()):
        if not isinstance(text, str):
            raise ValueError(  # noqa: TRY004
                f"{whose}: row {row} is {text!r}, and no text; leave it out, or give it a name"
            )
        texts[row] = str(text)
    return texts


def _plain(name: Any) -> Any:
    """Return a text as one of Python, because numpy's are written otherwise in a fingerprint; all else as it is."""
    return str(name) if isinstance(name, str) else name


def _as_int64(whose: str, values: NDArray[Any]) -> NDArray[np.int64]:
    if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{whose} hold {values.max()}, which is too large for int64; number them from 0")
    return values.astype(np.int64, copy=False)


def _truths(whose: str, targets: NDArray[Any]) -> NDArray[Any]:
    if targets.ndim != 2:
        raise ValueError(f"{whose} must have shape ({len(targets)}, labels) for multilabel, not {targets.shape}")
    if targets.dtype.kind not in "biuf":
        raise ValueError(f"{whose} must be 1 where a label applies, else 0, not {targets.dtype}")
    wrong = (targets != 0) & (targets != 1)
    if wrong.any():
        place = tuple(int(one[0]) for one in wrong.nonzero())
        raise ValueError(f"{whose}: row {place[0]} holds {targets[place]}; write 1 where a label applies, else 0")
    return targets.astype(np.int64, copy=False)


def _quantities(whose: str, targets: NDArray[Any]) -> NDArray[Any]:
    if targets.dtype.kind not in "biuf":
        raise ValueError(f"{whose} must be numbers for regression, not {targets.dtype}")
    return _as_float32(whose, targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets)


def _default_names(task: Task, targets: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    if task == "regression":
        return ("target",)
    return tuple(map(str, range(next(iter(targets.values())).shape[1])))


def _groups(groups: Mapping[str, ArrayLike] | None, domains: list[str]) -> dict[str, NDArray[Any]]:
    """Return the groups of domains as numbers; texts are numbered within a domain."""
    if groups is None:
        return {}
    for key in groups:
        if key not in domains:
            raise UnknownNameError("domain with groups", key, domains)
    numbered = {}
    for key in domains:
        if key not in groups:
            raise ValueError(f"domain {key} has no groups: np.arange(n) if every row is of another thing")
        values = as_array(groups[key], whose := f"groups of domain {key}")
        if values.dtype.kind in "UTO":
            values = np.unique(_texts(whose, values), return_inverse=True)[1]
        numbered[key] = _as_int64(whose, values) if values.dtype.kind in "biu" and values.ndim else values
    return numbered


def _fingerprint(name: str, domains: Sequence[Domain], facts: tuple[object, ...]) -> str:
    """Return a hash of facts and arrays, which are read in blocks."""
    from tqdm import tqdm

    digest = hashlib.sha256(repr(facts).encode(errors="backslashreplace"))
    total = sum(domain.inputs.nbytes for domain in domains)
    with tqdm(total=total, desc=f"reading {name}", unit="B", unit_scale=True, delay=UNSEEN_SECONDS, leave=False) as bar:
        for domain in domains:
            digest.update(repr(domain.name).encode(errors="backslashreplace"))
            for array in (domain.inputs, domain.targets, domain.groups):
                if array is None:
                    continue
                digest.update(repr((array.dtype.name, array.shape)).encode())
                rows = max(1, _HASHED_AT_ONCE * len(array) // max(1, array.nbytes))
                for start in range(0, len(array), rows):
                    digest.update(block := array[start : start + rows].tobytes())
                    bar.update(len(block))
    return digest.hexdigest()[:16]
