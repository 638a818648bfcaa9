"""Given vectors of classes, such as a text encoder's, which a network's features are compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shiftproof.base.field_error import FieldError

_TENSOR, _CLASSES = "vectors", "classes"


class ClassVectors(NamedTuple):
    """Vectors of classes.

    Attributes:
        file: the file that they are from.
        fingerprint: the first 16 hexadecimal digits of the file's SHA-256.
        classes: names of the classes.
        vectors: float32, shape (classes, size), in the order of the names.
    """

    file: Path
    fingerprint: str
    classes: tuple[str, ...]
    vectors: NDArray[np.float32]

    def of(self, classes: Sequence[str]) -> ClassVectors:
        """Return them in the order of a data set's classes.

        Raises:
            FieldError: a class has no vector, or a vector is of no class.
        """
        missing = [name for name in classes if name not in self.classes]
        unknown = [name for name in self.classes if name not in classes]
        if missing or unknown:
            faults = {"has no vector of": missing, "has vectors of unknown classes": unknown}
            text = "; ".join(f"{what} {', '.join(names)}" for what, names in faults.items() if names)
            raise FieldError("class_vectors", f"{self.file} {text}")
        order = [self.classes.index(name) for name in classes]
        return self._replace(classes=tuple(classes), vectors=self.vectors[order])


def read_class_vectors(file: Path) -> ClassVectors:
    """Read a safetensors file with the tensor ``vectors`` and, in its metadata, the JSON list ``classes`` of names.

    Raises:
        FieldError: there is no such file, it is not intact, lacks one of the two, or a vector is not finite or is zero.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise FieldError("class_vectors", f"there is no file of class vectors {file}")
    try:
        with safe_open(file, framework="pt") as content:
            stated = (content.metadata() or {}).get(_CLASSES)
            tensor = content.get_tensor(_TENSOR) if _TENSOR in content.keys() else None  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise FieldError("class_vectors", f"{file} is not an intact safetensors file: {error}") from error
    if tensor is None or tensor.ndim != 2 or not tensor.is_floating_point():
        raise FieldError("class_vectors", f"{file} holds no tensor '{_TENSOR}' of shape (classes, size)")
    classes = _names(stated)
    if classes is None or len(classes) != len(tensor):
        raise FieldError(
            "class_vectors",
            f"{file} must state the names of its {len(tensor)} classes, all different, as a JSON list under "
            f"'{_CLASSES}' in its metadata",
        )
    vectors = tensor.float().numpy()
    sizes = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if wrong := [name for name, size in zip(classes, sizes, strict=True) if not 0 < size < np.inf]:
        raise FieldError("class_vectors", f"{file}: vectors must be finite and not zero, unlike that of {wrong[0]}")
    with file.open("rb") as opened:
        fingerprint = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    return ClassVectors(file, fingerprint, classes, vectors)


def _names(stated: str | None) -> tuple[str, ...] | None:
    """Return the names in a JSON list of different texts; None if it is not one."""
    try:
        names = json.loads(stated or "")
    except ValueError:
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names) and len({*names}) == len(names)
    return tuple(names) if valid else None
