import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shiftproof.base.field_error import FieldError
from shiftproof.base.registry import UnknownNameError
from shiftproof.models import MODELS, Featurizer, Model, Normalisation, build_network, default_image_size

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(model: str, shape: tuple[int, int, int], seed: int = 0, **arguments: object):
    return build_network(model, shape, 5, dropout=0.0, seed=seed, **arguments)


@pytest.mark.parametrize(
    ("model", "shape", "features"),
    [
        ("small_conv", (2, 16, 16), 64),
        ("small_lenet", (1, 8, 8), 128),
        ("small_lenet", (3, 28, 28), 128),
        ("small_lenet", (3, 64, 64), 128),
        ("squeezenet1_1", (3, 32, 40), 512),
        ("resnet18", (3, 32, 32), 512),
        ("test_resnet", (1, 32, 32), 96),
        ("mobilenetv3_small_050", (3, 32, 32), 1024),  # its num_features is 288
        ("test_vit", (3, 32, 48), 64),
    ],
)
def test_features_and_logits_have_the_stated_sizes(model: str, shape: tuple[int, int, int], features: int) -> None:
    network = build(model, shape)
    images = torch.rand(2, *shape)
    assert network.training
    assert network.feature_size == features
    assert network.featurizer(images).shape == (2, features)
    assert network(images).shape == (2, 5)
    assert len(network.normalisation.mean) == len(network.normalisation.std) == shape[0]


def test_a_small_lenet_knows_where_things_are_and_small_conv_does_not() -> None:
    here, there = torch.zeros(2, 1, 1, 32, 32).unbind()
    here[..., 6:14, 6:14] = there[..., 18:26, 18:26] = 1
    for model, knows in (("small_lenet", True), ("small_conv", False)):
        featurizer = build(model, (1, 32, 32)).featurizer.eval()
        apart = (featurizer(here) - featurizer(there)).norm() / featurizer(here).norm()
        assert bool(apart > 0.1) == knows


def test_resnet50_is_torchvisions() -> None:
    from torchvision.models import resnet50

    network = build("resnet50", (3, 32, 32))
    assert network.feature_size == 2048
    with torch.device("meta"):
        names = {name for name in resnet50().state_dict() if not name.startswith("fc.")}
    assert set(network.featurizer.state_dict()) == names


def test_timms_resnet_is_reached_with_a_tag() -> None:
    from timm.models.resnet import ResNet

    assert not isinstance(build("resnet18", (3, 32, 32)).featurizer, ResNet)
    assert isinstance(build("resnet18.a1_in1k", (3, 32, 32)).featurizer, ResNet)


@pytest.mark.parametrize(
    ("model", "channels", "normalisation"),
    [
        ("squeezenet1_1", 3, IMAGENET),
        ("test_resnet", 3, Normalisation((0.5,) * 3, (0.5,) * 3)),
        ("resnet18.a1_in1k", 3, IMAGENET),
        ("resnet18.a1_in1k", 1, Normalisation((0.5,), (0.5,))),
        ("small_conv", 3, Normalisation((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_normalisation_is_the_models_own(model: str, channels: int, normalisation: Normalisation) -> None:
    assert build(model, (channels, 32, 32)).normalisation == normalisation


@pytest.mark.parametrize("model", ["small_conv", "test_resnet", "test_vit"])
def test_random_start_is_a_function_of_the_seed_alone(model: str) -> None:
    torch.manual_seed(1)
    first = build(model, (3, 32, 32), seed=7).state_dict()
    torch.manual_seed(2)
    torch.rand(3)
    again = build(model, (3, 32, 32), seed=7).state_dict()
    assert all(value.equal(again[name]) for name, value in first.items())
    other = build(model, (3, 32, 32), seed=8)
    assert not other.classifier.weight.equal(first["classifier.weight"])
    featurizers = [name for name, value in first.items() if not value.equal(other.state_dict()[name])]
    assert any(name.startswith("featurizer.") for name in featurizers)


def test_building_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    build("test_vit", (3, 32, 32))
    with pytest.raises(ValueError, match="cannot take"):
        build("squeezenet1_1", (3, 8, 8))
    assert torch.get_rng_state().equal(state)


def test_random_start_does_not_freeze_batch_norm() -> None:
    network = build("test_resnet", (3, 32, 32))
    assert not network.freeze_batch_norm
    assert all(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_what_given_weights_freeze_and_zero_can_be_left_out(tmp_path: Path) -> None:
    random = build("test_resnet", (3, 32, 32))
    save_file(random.featurizer.state_dict(), tmp_path / "w.safetensors")
    frozen = build("test_resnet", (3, 32, 32), weights=tmp_path / "w.safetensors")
    free = build(
        "test_resnet", (3, 32, 32), weights=tmp_path / "w.safetensors", freeze_batch_norm=False, zero_classifier=False
    )
    assert frozen.freeze_batch_norm
    assert not any(m.training for m in frozen.modules() if isinstance(m, nn.BatchNorm2d))
    assert frozen.classifier.weight.count_nonzero() == frozen.classifier.bias.count_nonzero() == 0
    assert not free.freeze_batch_norm
    assert all(m.training for m in free.modules() if isinstance(m, nn.BatchNorm2d))
    assert free.classifier.weight.equal(random.classifier.weight)  # nn.Linear's own start
    assert free.classifier.weight.count_nonzero() > 0


def test_a_random_start_is_neither_frozen_nor_zero_whatever_is_asked() -> None:
    asked = build("test_resnet", (3, 32, 32), freeze_batch_norm=True, zero_classifier=True)
    assert not asked.freeze_batch_norm
    assert asked.classifier.weight.count_nonzero() > 0


@pytest.mark.parametrize(
    ("model", "size"),
    [("squeezenet1_1", 224), ("resnet50", 224), ("test_vit", 160), ("inception_v3", 299), ("small_conv", 28)],
)
def test_default_image_size(model: str, size: int) -> None:
    assert default_image_size(model) == size


@pytest.mark.parametrize(
    ("model", "side", "takes"),
    [("squeezenet1_1", 16, "17 x 17"), ("vit_tiny_patch16_224", 8, "16 x 16")],
)
def test_images_too_small_are_refused_with_a_size_that_is_not(model: str, side: int, takes: str) -> None:
    size = default_image_size(model)
    with pytest.raises(
        ValueError,
        match=f"'{model}' cannot take images of {side} x {side} pixels: it takes {takes} and is made for {size}",
    ):
        build(model, (3, side, side))


def test_the_size_named_as_least_is_taken() -> None:
    assert build("squeezenet1_1", (3, 17, 17)).feature_size == 512


def test_torchvision_models_take_three_channels() -> None:
    for model in ("squeezenet1_1", "resnet18"):
        with pytest.raises(ValueError, match=f"'{model}' takes images of 3 channels, not 1"):
            build(model, (1, 32, 32))


def test_unknown_model_names_near_matches_of_ours_and_of_timm() -> None:
    for misspelt, near in (("squeezenet11", "squeezenet1_1"), ("vit_tiny_patch16_225", "vit_tiny_patch16_224")):
        with pytest.raises(UnknownNameError, match=f"Did you mean {near}") as caught:
            build(misspelt, (3, 32, 32))
        message = str(caught.value)
        assert all(name in message for name in MODELS)
        assert len(message) < 400
    with pytest.raises(UnknownNameError, match="unknown model 'nonesuch'"):
        default_image_size("nonesuch")


def test_small_models_import_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys; from shiftproof.models import build_network;"
        "build_network('small_conv', (1, 16, 16), 10, dropout=0.0, seed=0);"
        "assert not {'timm', 'torchvision', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_HALF = Normalisation((0.5,), (0.5,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda shape: nn.Flatten(), r"must build a shiftproof\.models\.Featurizer, not Flatten"),
        (
            lambda shape: Featurizer(lambda images: images, _HALF),
            r"must build a Featurizer of a torch module, not of function",
        ),
        (
            lambda shape: Featurizer(nn.Flatten(), (0.5, 0.5)),
            r"must state a shiftproof\.models\.Normalisation, not tuple",
        ),
        (lambda shape: Featurizer(nn.Flatten(), _HALF, stages=("9",)), r"has no module 9, which is named as a stage"),
        (lambda shape: Featurizer(_Pair(), _HALF), r"must return a tensor of features, not tuple"),
    ],
)
def test_a_model_that_does_not_build_a_featurizer_is_no_matter_of_its_images(make, message, monkeypatch) -> None:
    monkeypatch.setitem(MODELS._entries, "guest", Model(make, 28))
    with pytest.raises(FieldError, match=f"^model 'guest' {message}$") as error:
        build("guest", (1, 28, 28))
    assert error.value.fields == ("model",)


class _Pair(nn.Module):
    def forward(self, images):
        return images, images


@pytest.mark.parametrize("make", [lambda: None, None, 28])
def test_a_models_build_takes_the_shape(make, monkeypatch) -> None:
    monkeypatch.setitem(MODELS._entries, "guest", Model(make, 28))
    with pytest.raises(ValueError, match=r"^build of model 'guest' must (take 1 argument|be a function or a class)"):
        build("guest", (1, 28, 28))
