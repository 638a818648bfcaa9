"""Read weights files and load them into featurizers."""

from __future__ import annotations

import hashlib
import pickle  # only for its error: nothing is unpickled
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from shiftproof.base.field_error import FieldError
from shiftproof.base.text import one_line
from shiftproof.models.normalisation import Normalisation

LISTED = 10  # how many tensors of a kind an error names
_FEATURIZER = "featurizer."  # prefix of the featurizer's names in the state of a `Network`
NORMALISATION = "normalisation"
"""The entry of a safetensors file's metadata that states the normalisation of the images in training."""
SOURCE = "source"
"""The entry that states where weights are from."""
LICENCE = "licence"
"""The entry that states the licence of weights."""


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

    Files named ``.safetensors`` are read as such, and all others as written by ``torch.save``, with torch's safe
    reader: a pickle of anything but tensors and plain containers is refused, never run. The wrappers ``state_dict`` and
    ``model`` and the prefix ``module.`` (from ``DistributedDataParallel``) are removed.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt or refused, or holds something other than named tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(content, Mapping) and (inner := _wrapped(content)) is not None:
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise FieldError("weights", f"weights file {path} holds no named tensors")
    others = [
        str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if others:
        raise FieldError("weights", f"weights file {path} holds entries that are not named tensors: {_listed(others)}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def stated_normalisation(path: Path, channels: int) -> Normalisation | None:
    """Return the normalisation that a weights file states in its metadata; None if it states none.

    Models saved by runs state theirs. You can add it to the metadata of any safetensors file, under ``normalisation``
    and in the form that `Normalisation.parse` reads. Files from ``torch.save`` have no metadata.

    Args:
        path: the weights file (see `read_weights`).
        channels: number of channels of the images.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt, or the entry is not a normalisation for this number of channels.
    """
    text = stated_facts(path).get(NORMALISATION)
    try:
        return None if text is None else Normalisation.parse(text, channels)
    except ValueError as error:
        raise FieldError("weights", f"weights file {path} has in its metadata: {error}") from error


def stated_facts(path: Path) -> Mapping[str, str]:
    """Return what a weights file states in its metadata; nothing for files that have none.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt.
    """
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with _intact(path), safe_open(_existing(path), framework="pt") as file:
        return file.metadata() or {}


def weights_name(path: Path) -> str:
    """Return what a weights file is called in tables: where it says that it is from, else its own name.

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file is corrupt.
    """
    return one_line(stated_facts(path).get(SOURCE, path.name))


def load_weights(featurizer: nn.Module, path: Path, *, classifier: tuple[str, ...] = ()) -> None:
    """Load a file's weights into a featurizer, in the featurizer's own precision.

    The file must hold exactly the featurizer's tensors, with their shapes. It may also hold a classifier, which is
    ignored, and may lack ``num_batches_tracked`` of batch norms. If the file is a model that a run saved, its
    featurizer is loaded. On an error the featurizer stays unchanged.

    Args:
        featurizer: the module whose parameters and buffers are set.
        path: the weights file (see `read_weights`).
        classifier: first parts of the names of the classifier's tensors in the file ("fc" of "fc.weight").

    Raises:
        FileNotFoundError: there is no such file.
        FieldError: the file cannot be read or does not fit; the message lists the tensors at fault.
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
    featurizer.load_state_dict(given, strict=False)  # strict would require num_batches_tracked


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
        raise FieldError("weights", f"weights file {path} is not an intact safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    _existing(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FieldError(
            "weights",
            f"weights file {path} is refused: it is not a file of tensors, or it also holds other Python "
            "objects, which could run code when read. Save only the tensors, with "
            "torch.save(model.state_dict(), ...) or as safetensors",
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FieldError("weights", f"weights file {path} is not an intact file of torch.save: {error}") from error


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
