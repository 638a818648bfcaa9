"""Normalisation: the words for it, and what decides which one a network has."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shiftproof.models import (
    NORMALISATION,
    Network,
    Normalisation,
    build_network,
    check_normalisation,
    load_weights,
    read_weights,
    stated_normalisation,
)

MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("text", "channels", "mean", "std"),
    [
        ("imagenet", 3, MEANS, DEVIATIONS),
        ("half", 3, (0.5,) * 3, (0.5,) * 3),
        ("half", 1, (0.5,), (0.5,)),
        ("0.4,0.25", 2, (0.4, 0.4), (0.25, 0.25)),
        ("0, 1", 1, (0.0,), (1.0,)),
        ("0.1,0.2,0.3,0.4,0.5,0.6", 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ("0.1,0.2,0.4,2", 2, (0.1, 0.2), (0.4, 2.0)),
    ],
)
def test_a_text_is_read_as_means_and_then_deviations(
    text: str, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    check_normalisation(text)
    assert Normalisation.parse(text, channels) == Normalisation(mean, std)


@pytest.mark.parametrize(
    ("text", "channels", "shortest"),
    [
        ("0.485,0.456,0.406,0.229,0.224,0.225", 3, "imagenet"),
        ("0.50,.5", 3, "half"),
        ("0.5,0.5,0.5,0.5,0.5,0.5", 3, "half"),
        ("0.3,0.3,0.6,0.6", 2, "0.3,0.6"),
        ("0.1,0.2,0.3,0.4", 2, "0.1,0.2,0.3,0.4"),
    ],
)
def test_equal_normalisations_have_one_text_which_is_read_as_them(text: str, channels: int, shortest: str) -> None:
    normalisation = Normalisation.parse(text, channels)
    assert str(normalisation) == shortest
    assert Normalisation.parse(shortest, channels) == normalisation


@pytest.mark.parametrize("text", ["", "Half", "0.5", "0.5;0.5", "0.5,x", "0.5,0.5,0.5", "0.5,", "imagenet,half"])
def test_what_is_no_normalisation_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match=f"must be imagenet, half, or MEAN,STD of .*, not '{text}'"):
        check_normalisation(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,nan", "must be finite, not '0.5,nan'"),
        ("inf,0.5", "must be finite, not 'inf,0.5'"),
        ("0.5,0", "standard deviations of a normalisation must be above 0, not '0.5,0'"),
        ("0.5,0.5,0.5,-0.5", "must be above 0"),
        ("123.7,58.4", r"means .* for pixels in \[0, 1\], not in \[0, 255\], and cannot be '123.7,58.4'"),
        ("-0.1,0.5", "means"),
    ],
)
def test_numbers_that_cannot_be_means_or_deviations_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_normalisation(text)


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("imagenet", 1, "imagenet is for 3 channels; the images have 1"),
        ("0.1,0.2,0.3,0.4", 3, r"has 4 numbers; images of 3 channels take 2, mean and standard deviation or 6, a mean"),
        ("0.1,0.2,0.3,0.4", 1, r"has 4 numbers; images of 1 channel take 2, mean and standard deviation$"),
    ],
)
def test_a_normalisation_of_other_images_is_refused(text: str, channels: int, message: str) -> None:
    check_normalisation(text)
    with pytest.raises(ValueError, match=message):
        Normalisation.parse(text, channels)


# Which one a network has


def build(weights: Path | None = None, normalisation: str | None = None) -> Network:
    return build_network(
        "test_resnet", (3, 32, 32), 2, dropout=0.0, seed=0, weights=weights, normalisation=normalisation
    )


def tensors() -> dict[str, Tensor]:
    return build().featurizer.state_dict()


def test_a_networks_input_is_what_was_stated() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    given = build(normalisation="0.1,0.2,0.3,0.4,0.5,0.6").normalisation(pixels)
    for channel, (mean, std) in enumerate([(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]):
        torch.testing.assert_close(given[:, channel], (pixels[:, channel] - mean) / std)


def test_what_is_stated_wins_over_the_file_and_the_file_over_the_model(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "silent.safetensors")
    save_file(tensors(), tmp_path / "telling.safetensors", {NORMALISATION: "0.2,0.3"})
    torch.save(tensors(), tmp_path / "pickled.pth")
    assert str(build().normalisation) == "half"  # as timm has test_resnet
    assert str(build(tmp_path / "silent.safetensors").normalisation) == "half"
    assert str(build(tmp_path / "pickled.pth").normalisation) == "half"
    assert str(build(tmp_path / "telling.safetensors").normalisation) == "0.2,0.3"
    assert str(build(tmp_path / "telling.safetensors", "imagenet").normalisation) == "imagenet"
    assert stated_normalisation(tmp_path / "silent.safetensors", 3) is None
    assert stated_normalisation(tmp_path / "pickled.pth", 3) is None


def test_nothing_but_the_normalisation_follows_from_it(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "w.safetensors")
    plain, stated = build(tmp_path / "w.safetensors"), build(tmp_path / "w.safetensors", "imagenet")
    assert all(
        one.equal(other) for one, other in zip(plain.state_dict().values(), stated.state_dict().values(), strict=True)
    )


def test_metadata_that_state_no_normalisation_of_these_images_are_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for text, message in (("yes", "must be imagenet, half"), ("0.1,0.2,0.3,0.4", "images of 3 channels take 2")):
        save_file(tensors(), path, {NORMALISATION: text})
        with pytest.raises(ValueError, match=rf"weights file .*w\.safetensors has in its metadata: .*{message}"):
            build(path)
        assert str(build(path, "half").normalisation) == "half"


def test_the_featurizer_of_a_network_that_was_kept_is_loaded(tmp_path: Path) -> None:
    kept = build_network("small_conv", (3, 28, 28), 5, dropout=0.0, seed=1)
    save_file(kept.state_dict(), tmp_path / "model.safetensors")
    assert "classifier.weight" in read_weights(tmp_path / "model.safetensors")
    other = build_network("small_conv", (3, 28, 28), 9, dropout=0.0, seed=2).featurizer
    load_weights(other, tmp_path / "model.safetensors")
    assert all(tensor.equal(kept.featurizer.state_dict()[name]) for name, tensor in other.state_dict().items())
