"""The model of a run as a program that runs without shiftproof: torch.export or ONNX."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from shiftproof.base.extras import require
from shiftproof.base.files import write_bytes
from shiftproof.base.registry import UnknownNameError, did_you_mean
from shiftproof.training.saved_model import SavedModel

TOLERANCE = 1e-4
"""Largest difference of an output that an exported program may have; of a quantity, in its standard deviations."""
FACTS = "shiftproof.json"
"""The extra file of a torch program, and without suffix the metadata of ONNX: its classes, and what prepares rows."""
_BATCHES = (1, 5)
_TRACED_BATCH = 2
_INPUT, _OUTPUT = "inputs", "outputs"


class ExportError(ValueError):
    """A model cannot be exported, or the exported program does not compute what the model computes."""


class _Program(nn.Module):
    """What is exported: pictures are normalised inside.

    Args:
        model: the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        self.network = model.network
        normalisation = model.network.normalisation
        self.takes_pixels = normalisation is not None
        if normalisation is not None:
            for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
                self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (n, classes) of pixels in [0, 1] (n, channels, height, width), or of prepared vectors."""
        outputs: Tensor = self.network((inputs - self.mean) / self.std if self.takes_pixels else inputs)
        return outputs


def export_model(model: SavedModel, path: Path, form: str | None = None) -> float:
    """Write a model as a program whose batch size is free, and check what was written before it is kept.

    Its input are floats: pixels in [0, 1] of shape (n, channels, height, width), which it normalises itself, or vectors
    (n, size) as `SavedModel.normalise` prepares them, with numbers that the file holds too. Dropout and batch norms are
    in evaluation mode.

    Args:
        model: the model, on the CPU and in evaluation mode.
        path: the file.
        form: one of `EXPORT_FORMATS`; None to tell it from the file's suffix.

    Returns:
        The largest difference of an output from the model's, on random inputs of two batch sizes.

    Raises:
        ExportError: a part of the model cannot be exported, which the message names, or the outputs differ by more
            than `TOLERANCE`.
        ValueError: the format is unknown, or a package that it needs is not installed.
        FileNotFoundError: the folder of the file does not exist.
    """
    write = EXPORT_FORMATS[export_format(path, form)]
    if isinstance(path, Path) and not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    program = _Program(model).eval()
    content, run = write(model, program)
    difference = _difference(model, run)
    unit = model.network.quantity.std if model.network.quantity is not None else 1.0
    if not difference <= TOLERANCE * unit:
        raise ExportError(
            f"the exported program differs from the model by {difference:.1e}, more than {TOLERANCE * unit:.0e}, and "
            "was not kept"
        )
    write_bytes(path, content)
    return difference


def export_format(path: Path, form: str | None) -> str:
    """Return the format of an exported program: the one that is given, or that of the file's suffix.

    Raises:
        ValueError: the format or the suffix is unknown.
    """
    if form is not None:
        if form not in EXPORT_FORMATS:
            raise UnknownNameError("format", form, list(EXPORT_FORMATS))
        return form
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"the suffix of {path} tells no format: it must be {' or '.join(_SUFFIXES)}, or give the format: "
            f"{' or '.join(EXPORT_FORMATS)}.{did_you_mean(suffix, list(_SUFFIXES))}"
        )
    return _SUFFIXES[suffix]


Runner = Callable[[Tensor], Tensor]


def _torch(model: SavedModel, program: _Program) -> tuple[bytes, Runner]:
    written = io.BytesIO()
    torch.export.save(_traced(model, program), written, extra_files={FACTS: _facts(model)})
    loaded = torch.export.load(io.BytesIO(written.getvalue())).module()
    return written.getvalue(), loaded


def _onnx(model: SavedModel, program: _Program) -> tuple[bytes, Runner]:
    for name in ("onnx", "onnxscript"):
        require(name, "onnx")
    runtime = require("onnxruntime", "onnx")
    traced = _traced(model, program)
    try:
        converted: Any = torch.onnx.export(
            traced, dynamo=True, input_names=[_INPUT], output_names=[_OUTPUT], verbose=False
        )
        proto = converted.model_proto
        proto.metadata_props.add(key=Path(FACTS).stem, value=_facts(model))
        content: bytes = proto.SerializeToString()
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types, by operator and version
        raise ExportError(f"ONNX cannot represent the model: {_reason(error)}") from error
    return content, partial(_run_onnx, session)


def _run_onnx(session: Any, inputs: Tensor) -> Tensor:
    [outputs] = session.run(None, {_INPUT: inputs.numpy()})
    return torch.from_numpy(outputs)


EXPORT_FORMATS: dict[str, Callable[[SavedModel, _Program], tuple[bytes, Runner]]] = {"torch": _torch, "onnx": _onnx}
"""What makes an exported program, by the name of its format: the file's content, and how it runs."""
_SUFFIXES = {".pt2": "torch", ".onnx": "onnx"}


def _traced(model: SavedModel, program: _Program) -> torch.export.ExportedProgram:
    batch = {_INPUT: {0: torch.export.Dim("batch")}}
    with _trail(program.network) as trail:
        try:
            return torch.export.export(program, (_random(model, _TRACED_BATCH),), dynamic_shapes=batch)
        except Exception as error:  # of many types, by what the part does
            raise ExportError(f"{trail}: {_reason(error)}") from error


class _Trail:
    """Follows a forward pass through the parts of a network, to tell where it ended or fixed the size of the batch."""

    def __init__(self) -> None:
        self._inside: list[str] = []
        self._batch: int | torch.SymInt = -1
        self._fixes_batch = ""

    def enter(self, part: str, inputs: tuple[Any, ...]) -> None:
        if not self._inside:
            self._batch = inputs[0].shape[0]
        self._inside.append(part)

    def leave(self) -> None:
        part = self._inside.pop()
        if not self._fixes_batch and isinstance(self._batch, torch.SymInt) and is_concrete_int(self._batch):
            self._fixes_batch = part

    def __str__(self) -> str:
        if self._inside:
            return f"the part {self._inside[-1]} of the model cannot be exported"
        if self._fixes_batch:
            return f"the part {self._fixes_batch} of the model takes one size of batch alone"
        return "the model cannot be exported"


@contextmanager
def _trail(network: nn.Module) -> Iterator[_Trail]:
    trail, hooks = _Trail(), []
    for name, module in network.named_modules():
        part = f"{name or 'network'} ({type(module).__name__})"
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, part=part: trail.enter(part, inputs)))
        hooks.append(module.register_forward_hook(lambda *_: trail.leave()))
    try:
        yield trail
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _difference(model: SavedModel, run: Runner) -> float:
    normalisation = model.network.normalisation
    differences = []
    for size in _BATCHES:
        inputs = _random(model, size)
        try:
            outputs = run(inputs)
        except Exception as error:
            raise ExportError(f"the exported program does not run on a batch of {size}: {_reason(error)}") from error
        expected = model(inputs if normalisation is None else normalisation(inputs))
        if outputs.shape != expected.shape:
            raise ExportError(
                f"the exported program returns outputs of shape {tuple(outputs.shape)}, not {tuple(expected.shape)}"
            )
        differences.append((outputs - expected).abs().max())
    return float(torch.stack(differences).max())


def _random(model: SavedModel, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    if model.network.normalisation is None:
        return torch.randn(size, *model.input_shape, generator=generator)
    return torch.rand(size, *model.input_shape, generator=generator)


def _facts(model: SavedModel) -> str:
    facts: dict[str, Any] = {"task": model.task, "classes": model.classes, "input_shape": model.input_shape}
    if model.preparation is not None:
        facts["preparation"] = model.preparation.as_json()
    return json.dumps(facts)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
