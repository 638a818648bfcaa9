"""Encodes the pictures of a data set: the features that a network computes of them become a feature set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from shiftproof import __version__
from shiftproof.base.field_error import FieldError
from shiftproof.data import Domain, DomainDataset, Encoder, check_free, on_device, open_features, write_features
from shiftproof.models import Network, build_network, takes_pictures, weights_fingerprint, weights_name
from shiftproof.studies.study import Study
from shiftproof.studies.study_data import model_of, open_data, say_normalisation
from shiftproof.training import EVALUATION_BATCH, GPU_EVALUATION_BATCH


def encode(study: Study, output: Path) -> DomainDataset:
    """Compute the features of a data set's pictures, without augmentation and in float32, and write a feature set.

    Progress goes to the standard error. An interrupted call leaves nothing that opens.

    Args:
        study: its one data set, model, weights and device; other fields have no say.
        output: the folder of the feature set, which must not exist.

    Returns:
        The feature set, as the data set `features` opens it.

    Raises:
        FieldError: the study has several data sets or one that is not of pictures, its model is no model of pictures,
            or data, model, weights and device do not fit or are not there.
        FileExistsError: the output exists, or another process is writing it.
        ValueError: a feature is not finite.
        OSError: the output cannot be written.
    """
    check_free(output)
    if len(study.datasets) != 1:
        raise FieldError("datasets", f"encode one data set at a time, not {len(study.datasets)}")
    device = study.device_here()
    [name] = study.datasets
    model = model_of(study, name)
    if not takes_pictures(model):
        raise FieldError("model", f"model '{model}' takes vectors: name a model of pictures, whose features to write")
    weights = study.weights_file
    fingerprint = None if weights is None else weights_fingerprint(weights)  # before pictures are decoded
    dataset = open_data(study, name)
    if dataset.kind == "vectors":
        raise FieldError("datasets", f"{dataset.name} holds vectors, and only pictures are encoded")
    network = build_network(
        model,
        dataset.input_shape,
        len(dataset.classes),
        dropout=0.0,
        seed=0,
        weights=weights,
        normalisation=study.normalisation,
    )
    assert network.normalisation is not None  # noqa: S101  (a model of pictures has one)
    say_normalisation(study, model, network.normalisation)
    if weights is None:
        warnings.warn(
            f"no weights are given: these are features of a random start, unless model '{model}' brings its own",
            stacklevel=2,
        )
    encoder = Encoder(
        dataset.name,
        dataset.fingerprint,
        model,
        None if weights is None else weights_name(weights),
        fingerprint,
        dataset.input_shape,
        str(network.normalisation),
        __version__,
    )
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    with tqdm(total=sum(map(len, dataset.domains)), desc=f"encoding {dataset.name}", unit="image") as bar:

        def features(domain: Domain) -> Iterator[NDArray[np.float32]]:
            for part in _features(network, domain, device):
                yield part
                bar.update(len(part))

        write_features(output, dataset, encoder, network.feature_size, features)
    return open_features(output)


def _features(network: Network, domain: Domain, device: torch.device) -> Iterator[NDArray[np.float32]]:
    """Yield the features of a domain's pictures in order, batch by batch."""
    assert network.normalisation is not None  # noqa: S101  (a model of pictures has one)
    size = GPU_EVALUATION_BATCH if device.type == "cuda" else EVALUATION_BATCH
    for start in range(0, len(domain), size):
        with torch.inference_mode():
            # a copy, because torch takes no array that is mapped read-only
            pixels = on_device(np.array(domain.inputs[start : start + size]), device).float() / 255
            inputs = network.normalisation(pixels).contiguous(memory_format=torch.channels_last)
            yield network.featurizer(inputs).float().cpu().numpy()
