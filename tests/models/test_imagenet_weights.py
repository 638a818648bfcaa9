"""The real SqueezeNet 1.1 weights, on photographs of PACS."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from shared_data import PACS, SQUEEZENET
from shiftproof.models import build_network, weights_fingerprint

DOGS = PACS / "photo" / "dog"

pytestmark = pytest.mark.skipif(not SQUEEZENET.is_file(), reason="needs the weights in the shared folder")


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    model = torchvision.models.squeezenet1_1()
    model.load_state_dict(load_file(SQUEEZENET))
    return model.eval()


def network():
    return build_network("squeezenet1_1", (3, 128, 128), 7, dropout=0.0, seed=0, weights=SQUEEZENET).eval()


def dogs(count: int) -> Tensor:
    """Photos of dogs, (count, 3, 128, 128) in [0, 1]."""
    paths = sorted(DOGS.glob("*.jpg"))
    paths = paths[:: len(paths) // count][:count]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def test_fingerprint_is_the_published_one() -> None:
    assert weights_fingerprint(SQUEEZENET) == "98216fadbba4c731"


def test_features_are_the_mean_of_torchvisions_last_map(whole: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = network().featurizer(images)
        expected = whole.features(images).mean((2, 3))
    torch.testing.assert_close(features, expected)
    assert features.std() > 0.1


@pytest.mark.skipif(not DOGS.is_dir(), reason="needs PACS in the shared folder")
def test_dogs_are_told_as_dogs(whole: torch.nn.Module) -> None:
    # ImageNet's classes 151 to 268 are dogs; 0.836 of all 189 photos at this size are told as one of them.
    net = network()
    assert net.freeze_batch_norm
    with torch.no_grad():
        last_map = net.featurizer.features(net.normalisation(dogs(47)))
        predicted = whole.classifier(last_map).flatten(1).argmax(1)
    assert ((predicted >= 151) & (predicted <= 268)).float().mean() > 0.6
