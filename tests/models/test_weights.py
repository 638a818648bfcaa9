import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shiftproof.models import build_network, load_weights, read_weights, weights_fingerprint

TENSORS = {"0.weight": torch.randn(4, 3), "0.bias": torch.randn(4)}


def build(model: str, seed: int = 0, weights: Path | None = None):
    return build_network(model, (3, 64, 64), 5, dropout=0.0, seed=seed, weights=weights)


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4))


def test_safetensors_and_torch_files_give_the_same_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        tensors = read_weights(tmp_path / name)
        assert sorted(tensors) == sorted(TENSORS)
        assert all(tensors[key].equal(value) for key, value in TENSORS.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors, "best": 0.5},
        lambda tensors: {"model": {"state_dict": tensors}},
        lambda tensors: {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    ],
    ids=["state_dict", "model", "both", "module"],
)
def test_wrappers_are_taken_off(wrap: Callable[[dict[str, Tensor]], object], tmp_path: Path) -> None:
    torch.save(wrap(TENSORS), tmp_path / "w.pth")
    net = linear()
    load_weights(net, tmp_path / "w.pth")
    assert net[0].weight.equal(TENSORS["0.weight"])
    assert net[0].bias.equal(TENSORS["0.bias"])


def test_float16_is_widened(tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in TENSORS.items()}, tmp_path / "w.safetensors")
    net = linear()
    load_weights(net, tmp_path / "w.safetensors")
    assert net[0].weight.dtype == torch.float32
    assert net[0].weight.equal(TENSORS["0.weight"].half().float())


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "extra": Bomb(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth is refused: .* other Python objects"):
        load_weights(linear(), tmp_path / "w.pth")
    torch.save(linear(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth is refused"):
        read_weights(tmp_path / "module.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kept", [0, 5, 60])
def test_damaged_files_are_named(name: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(TENSORS, path) if name.endswith("safetensors") else torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=name):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_an_empty_file_is_called_empty(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    for read in (read_weights, weights_fingerprint):
        with pytest.raises(ValueError, match=f"^weights file {path} is empty$"):
            read(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_weights, weights_fingerprint):
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
            read(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        build("squeezenet1_1", weights=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "no named tensors"),
        ({}, "no named tensors"),
        ({"weight": torch.ones(2), "epoch": 3}, "not named tensors: epoch"),
        ({0: torch.ones(2)}, "not named tensors: 0"),
    ],
)
def test_files_without_named_tensors_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "w.pth")


def test_all_misfits_are_listed_with_their_shapes_and_nothing_is_loaded(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tensors = TENSORS | {"1.weight": torch.ones(4, 2), "other": torch.ones(7)}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError) as caught:
        load_weights(net, tmp_path / "w.safetensors")
    assert str(caught.value) == (
        f"weights file {tmp_path / 'w.safetensors'} does not fit the model: 1 missing: 1.bias (2,); "
        "1 surplus: other (7,); 1 misshapen: 1.weight (4, 2) instead of (2, 4)"
    )
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_long_lists_are_cut_but_counted(tmp_path: Path) -> None:
    save_file(TENSORS | {f"other{i:02}": torch.ones(1) for i in range(25)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"25 surplus: other00 \(1,\), .*, other09 \(1,\), \.\.\.$"):
        load_weights(linear(), tmp_path / "w.safetensors")


def whole_model(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name in ("resnet18", "squeezenet1_1"):
        import torchvision

        model = torchvision.models.get_model(name)
    else:
        import timm

        model = timm.create_model(name, **({"img_size": 64} if "vit" in name else {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


# Classifiers: fc, classifier.1, head, and head and head_dist with batch norms that timm's configuration omits.
@pytest.mark.parametrize("model", ["resnet18", "squeezenet1_1", "test_resnet", "test_vit", "levit_128"])
def test_whole_models_weights_load_without_their_classifier(model: str, tmp_path: Path) -> None:
    whole = whole_model(model).state_dict()
    save_file(
        {name: tensor for name, tensor in whole.items() if "num_batches_tracked" not in name},
        tmp_path / "w.safetensors",
    )
    state = torch.get_rng_state()
    network = build(model, seed=4, weights=tmp_path / "w.safetensors")
    assert torch.get_rng_state().equal(state)
    loaded = network.featurizer.state_dict()
    assert all(value.equal(whole[name]) for name, value in loaded.items() if "num_batches" not in name)
    assert all(parameter.count_nonzero() == 0 for parameter in network.classifier.parameters())


def test_given_weights_freeze_batch_norm(tmp_path: Path) -> None:
    torch.save(whole_model("test_resnet").state_dict(), tmp_path / "w.pth")
    network = build("test_resnet", weights=tmp_path / "w.pth")
    before = {name: value.clone() for name, value in network.named_buffers()}
    assert before
    network(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(value.equal(before[name]) for name, value in network.named_buffers())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_head_of_another_make_under_the_classifiers_name_is_passed_over(tmp_path: Path) -> None:
    whole = whole_model("test_resnet").state_dict()
    head = {"fc.1.weight": torch.ones(7, 96), "fc.1.bias": torch.ones(7)}
    save_file({name: tensor for name, tensor in whole.items() if name[:3] != "fc."} | head, tmp_path / "w.safetensors")
    assert build("test_resnet", weights=tmp_path / "w.safetensors").feature_size == 96


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(whole_model("test_vit").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit .* missing: conv1.* surplus: "):
        build("test_resnet", weights=tmp_path / "w.pth")


def test_fingerprint_is_the_start_of_sha256(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"weights")
    assert weights_fingerprint(path) == hashlib.sha256(b"weights").hexdigest()[:16]
