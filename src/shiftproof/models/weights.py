"""Weights of featurizers from files."""

from __future__ import annotations

import hashlib
import pickle  # only for its error: nothing is unpickled
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from shiftproof.base.field_error import FieldError
from shiftproof.models.normalisation import Normalisation

LISTED = 10  # tensors of a kind that an error names
_FEATURIZER = "featurizer."  # how names begin in the state of a `Network`
NORMALISATION = "normalisation"
"""The entry of a safetensors file's metadata that states what its weights were trained with."""


def weights_fingerprint(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: it is empty.
    """
    with _existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name, on the CPU.

    Files named ``.safetensors`` are read as such, all others as written by ``torch.save``, with its safe reader:
    a pickle of anything but tensors and plain containers is refused, never run. The wrappers ``state_dict``
    and ``model`` and the prefix ``module.`` (of ``DistributedDataParallel``) are taken off.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt, refused, or holds something other than tensors by name.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(content, Mapping) and (inner := _wrapped(content)) is not None:
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise FieldError("weights", f"weights file {path} holds no tensors by name")
    others = [
        str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if others:
        raise FieldError("weights", f"weights file {path} holds entries that are no tensors: {_listed(others)}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def stated_normalisation(path: Path, channels: int) -> Normalisation | None:
    """Return the normalisation that a weights file states in its metadata; None if it states none.

    The models that runs keep state theirs. It can be written into any safetensors file, under ``normalisation`` as
    `Normalisation.parse` reads it. Files of ``torch.save`` have no place for it.

    Args:
        path: see `read_weights`.
        channels: number of channels of the images.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt, or states something else or the normalisation of other images.
    """
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with _intact(path), safe_open(_existing(path), framework="pt") as file:
        text = (file.metadata() or {}).get(NORMALISATION)
    try:
        return None if text is None else Normalisation.parse(text, channels)
    except ValueError as error:
        raise FieldError("weights", f"weights file {path} has in its metadata: {error}") from error


def load_weights(featurizer: nn.Module, path: Path, *, classifier: tuple[str, ...] = ()) -> None:
    """Load a file's weights into a featurizer, in the featurizer's own precision.

    The file must have every tensor of the featurizer, in its shape, and no other, except that it may have a
    classifier, which is passed over, and may lack batch norms' ``num_batches_tracked``. Of the model that a run kept,
    the featurizer is taken. On an error the featurizer is left as it was.

    Args:
        featurizer: whose parameters and buffers are set.
        path: see `read_weights`.
        classifier: first parts of the names of the classifier's tensors in the file ("fc" of "fc.weight").

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file cannot be read, or does not fit; the message lists the tensors that do not.
    """
    wanted = featurizer.state_dict()
    tensors = read_weights(path)
    if any(name.startswith(_FEATURIZER) for name in tensors):
        tensors = {
            name.removeprefix(_FEATURIZER): tensor for name, tensor in tensors.items() if name.startswith(_FEATURIZER)
        }
    given = {
        name: tensor for name, tensor in tensors.items() if name in wanted or name.partition(".")[0] not in classifier
    }
    missing = [
        f"{name} {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name not in given and not name.endswith("num_batches_tracked")
    ]
    surplus = [f"{name} {_shape(tensor)}" for name, tensor in given.items() if name not in wanted]
    misshapen = [
        f"{name} {_shape(tensor)} instead of {_shape(wanted[name])}"
        for name, tensor in given.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    faults = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    if any(faults.values()):
        lists = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in faults.items() if names)
        raise FieldError("weights", f"weights file {path} does not fit the model: {lists}")
    featurizer.load_state_dict(given, strict=False)  # strict would ask for num_batches_tracked


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.stat().st_size == 0:
        raise FieldError("weights", f"weights file {path} is empty")
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with _intact(path):
        return load_file(_existing(path))


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise FieldError("weights", f"weights file {path} is no intact safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    _existing(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FieldError(
            "weights",
            f"weights file {path} is refused: it is not a file of tensors, or it also holds other Python "
            "objects, whose reading could run code. Save the tensors alone, with "
            "torch.save(model.state_dict(), ...) or as safetensors",
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FieldError("weights", f"weights file {path} is no intact file of torch.save: {error}") from error


def _wrapped(content: Mapping[str, object]) -> Mapping[str, object] | None:
    for wrapper in ("state_dict", "model"):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            return inner
    return None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
