"""The error for an invalid value of a field, an option or a hyperparameter."""

from __future__ import annotations

from typing import Any


class FieldError(ValueError):
    """A field of a study or a hyperparameter has an invalid value, or one that conflicts with another's.

    The code that finds the fault raises it and names the field, so that the code that read the value, from a file or an
    option, can point to its place there.

    Args:
        fields: names of the faulty fields, the likeliest first: fields as in `Study`, hyperparameters as given, such
            as "optimizer.lr". After "variants" may come the place in them, as "variants.NAME.optimizer.lr".
        message: what is wrong.
    """

    def __init__(self, fields: str | tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.fields = (fields,) if isinstance(fields, str) else fields

    @property
    def field(self) -> str:
        """The field most likely at fault."""
        return self.fields[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), str(self), vars(self))  # by default, unpickling passes the message alone


def _restored(kind: type[FieldError], message: str, attributes: dict[str, Any]) -> FieldError:
    error = kind.__new__(kind, message)
    vars(error).update(attributes)
    return error
