"""The model that a run keeps: weights, class names, input size and normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor, nn

from shiftproof.algorithms import ALGORITHMS, Batch
from shiftproof.base.files import DamagedFileError, output_path, read_json, write_bytes, write_json
from shiftproof.base.plugins import digests, import_plugins, naming_plugins
from shiftproof.data import decode, labelled_images, to_pixels
from shiftproof.models import MODELS, NORMALISATION, Network, Normalisation, build_network
from shiftproof.training.evaluation import evaluate
from shiftproof.training.inputs import EVALUATION_BATCH

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"


class SavedModel(nn.Module):
    """A trained network with everything needed to use it.

    Attributes:
        network: maps normalised images (n, channels, height, width) to logits (n, classes).
        classes: the class names.
        image_shape: shape (channels, height, width) of its input.
    """

    def __init__(self, network: Network, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.image_shape = image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised images (n, channels, height, width)."""
        logits: Tensor = self.network(images)
        return logits

    def transform(self, image: Image.Image) -> Tensor:
        """Turn a picture into a normalised tensor (channels, height, width), as in validation."""
        channels, size, _ = self.image_shape
        return self.normalise(torch.from_numpy(to_pixels(image, size, 1 if channels == 1 else 3)[None]))[0]

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images (n, channels, height, width) into the network's input."""
        return self.network.normalisation(images.float() / 255)


def save_model(
    folder: Path,
    network: Network,
    weights: Mapping[str, Tensor],
    model: str,
    algorithm: str,
    classes: tuple[str, ...],
    image_shape: tuple[int, int, int],
) -> None:
    """Save a network with some weights in a run's folder; the algorithm's name tells `load` which parts it adds."""
    plugins = {"model": list(digests([(MODELS, model)])), "algorithm": list(digests([(ALGORITHMS, algorithm)]))}
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    write_bytes(folder / WEIGHTS_FILE, save(tensors, {NORMALISATION: str(network.normalisation)}))
    write_json(
        folder / DESCRIPTION_FILE,
        {
            "model": model,
            "algorithm": algorithm,
            "classes": classes,
            "image_shape": image_shape,
            "mean": network.normalisation.mean,
            "std": network.normalisation.std,
            "freeze_batch_norm": network.freeze_batch_norm,
            **({"plugins": plugins} if any(plugins.values()) else {}),
        },
    )


def load(run: str | Path) -> SavedModel:
    """Return the model that a run selected, in evaluation mode.

    Args:
        run: the run's folder, or its address on an object store.

    Raises:
        FileNotFoundError: the folder holds no model.
        PluginError: it needs a plug-in that was not imported; the message names it.
        DamagedFileError: a file of the model is damaged.
    """
    import_plugins()
    folder = output_path(run) if isinstance(run, str) else run
    if not (folder / DESCRIPTION_FILE).exists():
        raise FileNotFoundError(f"{folder} holds no model: there is no {DESCRIPTION_FILE} in it")
    remedy = "train the run again"
    description: dict[str, Any] = read_json(folder / DESCRIPTION_FILE, remedy)
    try:
        classes, image_shape = tuple(description["classes"]), tuple(description["image_shape"])
        plugins = description.get("plugins", {})
        with naming_plugins(plugins.get("model", [])):
            network = build_network(description["model"], image_shape, len(classes), dropout=0.0, seed=0)
        # early versions, whose algorithms added no parts, did not record it
        algorithm, own = description.get("algorithm", "erm"), plugins.get("algorithm", [])
        if algorithm in ALGORITHMS or own:  # one that a script registers may not be known here
            with naming_plugins(own):
                network = ALGORITHMS[algorithm].extend(network)
        network.normalisation = Normalisation(tuple(description["mean"]), tuple(description["std"]))
        network.freeze_batch_norm = description["freeze_batch_norm"]
    except (KeyError, TypeError) as error:
        raise DamagedFileError(folder / DESCRIPTION_FILE, f"no valid {error}", remedy) from error
    try:
        network.load_state_dict(read_tensors((folder / WEIGHTS_FILE).read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamagedFileError(folder / WEIGHTS_FILE, str(error).partition("\n")[0], remedy) from error
    return SavedModel(network, classes, image_shape).eval()


def evaluate_folder(run: str | Path, data_dir: Path, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Score the model that a run selected on folders of images.

    Args:
        run: the run's folder.
        data_dir: folder of ``<class>/<image>`` or ``<domain>/<class>/<image>``.
        device: the device to evaluate on.

    Returns:
        ``count``, ``accuracy``, ``per_class`` and ``loss`` by domain, as in `evaluate`.

    Raises:
        FileNotFoundError: the run holds no model.
        ValueError: a file of the run or an image is damaged, or the folder does not fit the model.
    """
    model = load(run).to(device)
    channels, size, _ = model.image_shape

    def batches(paths: Sequence[Path], labels: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(paths), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            pixels = np.stack([decode(path, size, 1 if channels == 1 else 3) for path in paths[part]])
            yield model.normalise(torch.from_numpy(pixels).to(device)), torch.from_numpy(labels[part]).to(device)

    return {
        domain.name: evaluate(model, batches(domain.paths, domain.labels), len(model.classes), "float32")
        for domain in labelled_images(data_dir, model.classes)
    }
