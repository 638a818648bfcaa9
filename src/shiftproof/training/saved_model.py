"""The model that a run keeps: weights, class names, and what turns raw inputs into those of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor, nn

from shiftproof.algorithms import ALGORITHMS
from shiftproof.base.files import DamagedFileError, output_path, read_json, write_bytes, write_json
from shiftproof.base.plugins import digests, import_plugins, naming_plugins
from shiftproof.data import DomainDataset, Preparation, Task, decode, to_pixels
from shiftproof.models import (
    MODELS,
    NORMALISATION,
    CosineClassifier,
    Network,
    Normalisation,
    Quantity,
    build_network,
    model_hparams,
)
from shiftproof.training.prepared import PreparedDataset

WEIGHTS_FILE = "model.safetensors"
"""The weights of the model that a run keeps."""
DESCRIPTION_FILE = "model.json"
_MEMBERS = "members"
_REMEDY = "train the run again"


class SavedModel(nn.Module):
    """A trained network with everything needed to use it.

    Attributes:
        network: maps normalised images (n, channels, height, width), or prepared vectors (n, size), to outputs
            (n, classes).
        classes: the names of its outputs: of classes or labels, or of a quantity.
        input_shape: shape of its input, of pictures (channels, height, width).
        preparation: what turns rows of a table into vectors; None for pictures and for arrays of other shapes.
        algorithm: name of the algorithm that trained it.
    """

    def __init__(
        self,
        network: Network,
        classes: tuple[str, ...],
        input_shape: tuple[int, ...],
        preparation: Preparation | None = None,
        algorithm: str = "erm",
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.input_shape = input_shape
        self.preparation = preparation
        self.algorithm = algorithm

    @property
    def task(self) -> Task:
        """What it predicts."""
        return self.network.task

    @property
    def transductive(self) -> bool:
        """Whether its outputs for an input depend on the other inputs of the batch."""
        return self.algorithm in ALGORITHMS and ALGORITHMS[self.algorithm].transductive

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs (n, classes) of normalised images (n, channels, height, width) or prepared vectors."""
        outputs: Tensor = self.network(inputs)
        return outputs

    def transform(self, image: Image.Image | str | Path) -> Tensor:
        """Turn a picture, or the path of one, into a normalised tensor (channels, height, width), as in validation.

        Raises:
            ImageError: there is no picture at the path.
            ValueError: the model takes no pictures.
        """
        size, channels = self.size_of_pictures()
        if isinstance(image, Image.Image):
            pixels = to_pixels(image, size, channels)
        else:
            pixels = decode(Path(image), size, channels)
        return self.normalise(torch.from_numpy(pixels[None]))[0]

    def size_of_pictures(self) -> tuple[int, Literal[1, 3]]:
        """Return the side in pixels and the channels of the pictures that it takes.

        Raises:
            ValueError: the model takes no pictures.
        """
        if self.network.normalisation is None:
            raise ValueError(f"the model takes inputs of shape {self.input_shape}, not pictures")
        channels, side, _ = self.input_shape
        return side, 1 if channels == 1 else 3

    def normalise(self, inputs: Tensor) -> Tensor:
        """Turn uint8 images (n, channels, height, width) into the network's input.

        Rows of a table, float32 (n, columns), are prepared as training prepared its own.
        """
        if self.network.normalisation is not None:
            return self.network.normalisation(inputs.float() / 255)
        if self.preparation is None:
            return inputs
        return torch.from_numpy(self.preparation(inputs.cpu().numpy())).to(inputs.device)


def save_model(
    folder: Path,
    network: Network,
    weights: Mapping[str, Tensor],
    model: str,
    algorithm: str,
    dataset: DomainDataset,
    hparams: Mapping[str, Any],
) -> None:
    """Save a network with some weights in a run's folder.

    Args:
        folder: the run's folder.
        network: the network.
        weights: the weights to save.
        model: name of the model.
        algorithm: name of the algorithm, which tells `load` what parts it adds.
        dataset: the data set that it was trained on.
        hparams: hyperparameters of the model, of which its own are saved.
    """
    plugins = {"model": list(digests([(MODELS, model)])), "algorithm": list(digests([(ALGORITHMS, algorithm)]))}
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    stated = {} if network.normalisation is None else {NORMALISATION: str(network.normalisation)}
    write_bytes(folder / WEIGHTS_FILE, save(tensors, stated))
    facts: dict[str, Any] = {
        "model": model,
        "algorithm": algorithm,
        "classes": dataset.classes,
        "freeze_batch_norm": network.freeze_batch_norm,
    }
    if own := {name: value for name, value in hparams.items() if name in model_hparams(model)}:
        facts["hparams"] = own
    if network.normalisation is None:
        facts["input_shape"] = dataset.input_shape
    else:
        facts |= {"image_shape": dataset.input_shape}
        facts |= {"mean": network.normalisation.mean, "std": network.normalisation.std}
    if network.task != "classification":
        facts["task"] = network.task
    if network.quantity is not None:
        facts["quantity"] = network.quantity
    if isinstance(network.classifier, CosineClassifier):
        facts["class_vectors"] = True
    if isinstance(dataset, PreparedDataset) and dataset.preparation is not None:
        facts["preparation"] = dataset.preparation.as_json()
    if any(plugins.values()):
        facts["plugins"] = plugins
    write_json(folder / DESCRIPTION_FILE, facts)


def load(run: str | Path) -> SavedModel:
    """Return the model that a run selected, in evaluation mode.

    Args:
        run: the run's folder, or its address on an object store.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it holds an ensemble.
        PluginError: it needs a plug-in that was not imported; the message names it.
        DamagedFileError: a file of the model is damaged.
    """
    import_plugins()
    folder = output_path(run) if isinstance(run, str) else run
    description = read_description(folder)
    remedy = _REMEDY
    weights = read_weights(folder)
    try:
        classes = tuple(description["classes"])
        input_shape = tuple(description["input_shape" if "input_shape" in description else "image_shape"])
        quantity, steps = description.get("quantity"), description.get("preparation")
        plugins = description.get("plugins", {})
        with naming_plugins(plugins.get("model", [])):
            network = build_network(
                description["model"],
                input_shape,
                len(classes),
                dropout=0.0,
                seed=0,
                hparams=description.get("hparams", {}),
                task=description.get("task", "classification"),
                quantity=None if quantity is None else Quantity(*quantity),
                class_vectors=weights["classifier.weight"] if description.get("class_vectors") else None,
            )
        preparation = None if steps is None else Preparation.from_json(steps)
        # early versions, whose algorithms added no parts, did not record it
        algorithm, own = description.get("algorithm", "erm"), plugins.get("algorithm", [])
        if algorithm in ALGORITHMS or own:  # one that a script registers may not be known here
            with naming_plugins(own):
                network = ALGORITHMS[algorithm].extend(network)
        if network.normalisation is not None:
            network.normalisation = Normalisation(tuple(description["mean"]), tuple(description["std"]))
        network.freeze_batch_norm = description["freeze_batch_norm"]
    except (KeyError, TypeError) as error:
        raise DamagedFileError(folder / DESCRIPTION_FILE, f"no valid {error}", remedy) from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFileError(folder / WEIGHTS_FILE, str(error).partition("\n")[0], remedy) from error
    return SavedModel(network, classes, input_shape, preparation, algorithm).eval()


def read_description(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says of its model besides the weights.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: it holds an ensemble.
        DamagedFileError: the description cannot be read.
    """
    if not (folder / DESCRIPTION_FILE).exists():
        raise FileNotFoundError(f"{folder} holds no model: there is no {DESCRIPTION_FILE} in it")
    description: dict[str, Any] = read_json(folder / DESCRIPTION_FILE, _REMEDY)
    if isinstance(description, dict) and _MEMBERS in description:
        count = len(description[_MEMBERS])
        raise ValueError(f"{folder} holds an ensemble of {count} runs, which has no single model: name one of them")
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights that a run's folder holds.

    Raises:
        DamagedFileError: they cannot be read.
    """
    try:
        return read_tensors((folder / WEIGHTS_FILE).read_bytes())
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(folder / WEIGHTS_FILE, str(error).partition("\n")[0], _REMEDY) from error


def describe_ensemble(folder: Path, members: Sequence[str]) -> None:
    """Write into a run's folder that its predictions are of several models: those of the runs of these names."""
    write_json(folder / DESCRIPTION_FILE, {_MEMBERS: members})
