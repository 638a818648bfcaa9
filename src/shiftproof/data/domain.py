"""A domain: its inputs and targets, and what is wrong with arrays that are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Domain:
    """The rows of one domain: pictures, or anything else that an array holds row by row.

    Attributes:
        name: unique within the data set.
        inputs: pictures are uint8, shape (n, channels, height, width); vectors float32, shape (n, size), NaN where a
            value is missing; other float32 arrays, shape (n, ...), are for models of one's own. May be memory-mapped.
        targets: classification: int64, shape (n,), indices into the data set's classes. Multilabel: int64, shape
            (n, labels), 1 where a label applies, else 0. Regression: float32, shape (n,), in any unit.
        groups: int64, shape (n,): rows with the same number are of the same thing (drawings of one photograph, visits
            of one patient) and stay on one side of a grouped split; None if no groups are known.
        ids: texts, shape (n,): what names each row, as its number or its id in a table; None if nothing does. Nothing
            that is trained or measured depends on them.

    Raises:
        ValueError: an array has the wrong type or shape; the message says how to convert it.
    """

    name: str
    inputs: NDArray[Any]
    targets: NDArray[Any]
    groups: NDArray[np.int64] | None = None
    ids: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        self._check_inputs()
        self._check_rows("targets", self.targets, (np.int64, np.float32))
        if self.groups is not None:
            self._check_rows("groups", self.groups, (np.int64,))
        self._check_ids()

    def __len__(self) -> int:
        return len(self.targets)

    def _check_inputs(self) -> None:
        inputs, whose = self.inputs, f"inputs of domain {self.name}"
        if not isinstance(inputs, np.ndarray):
            raise ValueError(f"{whose} must be a numpy array, not {type(inputs).__name__}")  # noqa: TRY004
        if inputs.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"{whose} must be uint8 (pictures, from 0 to 255) or float32 (vectors), not {inputs.dtype}: "
                f"{_remedy(inputs)}"
            )
        if inputs.dtype == np.uint8 and inputs.ndim != 4:
            remedy = ": inputs[:, None] for grey ones" if inputs.ndim == 3 else ""
            if inputs.ndim == 2:
                remedy = ": inputs.astype(np.float32) for vectors"
            raise ValueError(
                f"{whose} are uint8 and must have shape (n, channels, height, width), not {inputs.shape}{remedy}"
            )
        if inputs.ndim < 2:
            raise ValueError(f"{whose} must have shape (n, size), not {inputs.shape}: inputs[:, None] for one feature")
        if not len(inputs):
            raise ValueError(f"domain {self.name} has no rows; leave it out")
        if not inputs.size:
            raise ValueError(f"{whose} have shape {inputs.shape[1:]}, which holds nothing")
        if inputs.dtype == np.uint8:
            channels, height, width = inputs.shape[1:]
            if min(channels, height) > 4 >= width:
                raise ValueError(
                    f"{whose} have shape {inputs.shape}, which looks like (n, height, width, channels): "
                    "inputs.transpose(0, 3, 1, 2)"
                )

    def _check_rows(self, name: str, values: object, dtypes: tuple[type, ...]) -> None:
        whose = f"{name} of domain {self.name}"
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{whose} must be a numpy array, not {type(values).__name__}")  # noqa: TRY004
        if values.dtype not in dtypes:
            also = ", or float32 for regression" if np.float32 in dtypes else ""
            raise ValueError(
                f"{whose} must be int64{also}, not {values.dtype}: {name}.astype(np.int64), if they are whole numbers"
            )
        if len(values) != len(self.inputs) or values.ndim > (1 if name == "groups" else 2):
            raise ValueError(
                f"{whose} must have shape ({len(self.inputs)},), one per row of the inputs, not {values.shape}"
            )

    def _check_ids(self) -> None:
        if self.ids is None:
            return
        if not isinstance(self.ids, np.ndarray) or self.ids.dtype.kind != "U":
            raise ValueError(f"ids of domain {self.name} must be a numpy array of texts: np.array(ids, dtype=str)")
        if self.ids.shape != (len(self.inputs),):
            raise ValueError(
                f"ids of domain {self.name} must have shape ({len(self.inputs)},), one per row of the inputs, not "
                f"{self.ids.shape}"
            )


def _remedy(inputs: NDArray[Any]) -> str:
    """Return how to convert inputs of another type."""
    vectors = "inputs.astype(np.float32)"
    pictures = {
        "f": "(inputs * 255).round().astype(np.uint8) for values in [0, 1]",
        "b": "inputs.astype(np.uint8) * 255",
    }.get(inputs.dtype.kind, "inputs.astype(np.uint8) for values from 0 to 255")
    return f"for pictures, {pictures}; for vectors, {vectors}" if inputs.ndim >= 3 else vectors
