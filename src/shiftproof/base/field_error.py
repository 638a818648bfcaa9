"""The error of a value that a field, an option or a hyperparameter cannot have."""

from __future__ import annotations

from typing import Any


class FieldError(ValueError):
    """A field of a study or a hyperparameter has a value that it cannot have, alone or beside another's.

    It is raised where the fault is found, so that whoever read the value, from a file or an option, can say where it
    stands.

    Args:
        fields: names of what is at fault, the likeliest first: fields as `Study` calls them, hyperparameters by
            "axis.name".
        message: what is wrong.
    """

    def __init__(self, fields: str | tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.fields = (fields,) if isinstance(fields, str) else fields

    @property
    def field(self) -> str:
        """The likeliest to be at fault."""
        return self.fields[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), str(self), vars(self))  # as exceptions do, it would ask for one argument alone


def _restored(kind: type[FieldError], message: str, attributes: dict[str, Any]) -> FieldError:
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error
