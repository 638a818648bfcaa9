"""Exported programs compute what the model computes, and run without shiftproof."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import shiftproof
from shiftproof.algorithms import ALGORITHMS, Algorithm, arm
from shiftproof.cli import main
from shiftproof.data import DATASETS, Column, Preparation, number_columns
from shiftproof.models import Network, Normalisation, Quantity, build_network
from shiftproof.training import ExportError, SavedModel, export, export_model, train

GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "using_a_model.md"
FORMATS = ("model.pt2", "model.onnx")
_RUNNER = """
import json, sys, numpy as np, torch
inputs = torch.from_numpy(np.load("inputs.npy"))
if sys.argv[1] == "model.pt2":
    facts = {"shiftproof.json": ""}
    outputs = torch.export.load("model.pt2", extra_files=facts).module()(inputs).detach().numpy()
    facts = facts["shiftproof.json"]
else:
    import onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    [outputs] = session.run(None, {"inputs": inputs.numpy()})
    facts = session.get_modelmeta().custom_metadata_map["shiftproof"]
assert not any(name.startswith("shiftproof") for name in sys.modules)
np.save("outputs.npy", outputs)
print(json.dumps(json.loads(facts)))
"""


def _need(file):
    if file.endswith(".onnx"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


def _elsewhere(file, inputs, folder):
    """Run an exported program in a fresh process; return its outputs, and what the file says of the model."""
    np.save(folder / "inputs.npy", inputs.numpy())
    done = subprocess.run([sys.executable, "-c", _RUNNER, file], cwd=folder, capture_output=True, text=True, check=True)
    return torch.from_numpy(np.load(folder / "outputs.npy")), json.loads(done.stdout)


def _here(path, inputs):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(inputs).detach()
    [outputs] = pytest.importorskip("onnxruntime").InferenceSession(path).run(None, {"inputs": inputs.numpy()})
    return torch.from_numpy(outputs)


@pytest.mark.parametrize("file", FORMATS)
def test_a_program_gives_the_models_logits_in_a_fresh_process(file, run, tmp_path, capsys):
    _need(file)
    assert main(["export", str(run), "--output", str(tmp_path / file)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    stated = float(first.removeprefix("largest difference of an output from the model's, on random inputs: "))
    assert 0 <= stated <= 1e-5
    assert last == f"written: {tmp_path / file}"
    images = torch.from_numpy(DATASETS["rotated_digits"].open(None, None).domains[5].inputs[:17])
    outputs, facts = _elsewhere(file, images.float() / 255, tmp_path)
    model = shiftproof.load(run)
    with torch.inference_mode():
        torch.testing.assert_close(outputs, model(model.normalise(images)), atol=1e-5, rtol=0)
    assert facts == {"task": "classification", "classes": [str(i) for i in range(10)], "input_shape": [1, 16, 16]}


@pytest.mark.parametrize("file", FORMATS)
def test_a_regression_of_vectors_is_exported_from_prepared_rows(file, tmp_path):
    _need(file)
    rows = np.random.default_rng(0).normal(3, 2, (40, 6)).astype(np.float32)
    preparation = Preparation.fit(number_columns(6), rows)
    network = build_network("mlp", (6,), 1, dropout=0.5, seed=0, task="regression", quantity=Quantity(2e5, 1e5))
    model = SavedModel(network, ("price",), (6,), preparation).eval()
    export_model(model, tmp_path / file)
    inputs = model.normalise(torch.from_numpy(rows))
    outputs = _here(tmp_path / file, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(outputs, model(inputs), atol=1, rtol=0)
    assert outputs.std() > 1000


@pytest.mark.parametrize("file", FORMATS)
def test_a_file_holds_what_prepares_a_row_without_shiftproof(file, tmp_path):
    _need(file)
    [block] = re.findall(r"```python\n(def prepared.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(block, names)  # noqa: S102
    columns = (Column("size"), Column("colour", ("blue", "red", "rare")), Column("age"))
    random = np.random.default_rng(0)
    rows = np.stack(
        [random.normal(5, 2, 60), np.repeat([0, 1, np.nan, 2], [30, 20, 8, 2]), random.normal(50, 9, 60)], axis=1
    ).astype(np.float32)
    rows[:7, 0] = np.nan
    preparation = Preparation.fit(columns, rows)
    network = build_network("mlp", (len(preparation.names),), 2, dropout=0.0, seed=0)
    model = SavedModel(network, ("no", "yes"), (len(preparation.names),), preparation).eval()
    export_model(model, tmp_path / file)
    asked = np.array([[4, 0, 40], [np.nan, 1, 60], [6, 2, np.nan], [7, np.nan, 50], [8, 3, 50]], dtype=np.float32)
    texts = ("blue", "red", "rare", None, "green")
    records = [
        {"size": None if size != size else size, "colour": colour, "age": None if age != age else age}
        for (size, _, age), colour in zip(asked.tolist(), texts, strict=True)
    ]
    facts = json.loads(json.dumps(preparation.as_json()))
    inputs = torch.tensor([names["prepared"](record, facts) for record in records])
    outputs, held = _elsewhere(file, inputs, tmp_path)
    assert held == {"task": "classification", "classes": ["no", "yes"], "input_shape": [7], "preparation": facts}
    with torch.inference_mode():
        torch.testing.assert_close(outputs, model(model.normalise(torch.from_numpy(asked))), atol=1e-5, rtol=0)
    assert len({tuple(row) for row in outputs[:, :1].tolist()}) == 5


def _photograph_model(featurizer, features=8):
    network = Network(featurizer, features, 3, Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)), dropout=0.5)
    return SavedModel(network, ("a", "b", "c"), (3, 12, 12)).eval()


@pytest.mark.parametrize("file", FORMATS)
def test_dropout_and_batch_norms_are_those_of_evaluation(file, tmp_path):
    _need(file)
    norm = nn.BatchNorm2d(8)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    model = _photograph_model(
        nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    assert export_model(model, tmp_path / file) <= 1e-5
    pixels = torch.rand(6, 3, 12, 12)
    together, alone = _here(tmp_path / file, pixels), _here(tmp_path / file, pixels[:1])
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=0)
    with torch.inference_mode():
        expected = model(model.network.normalisation(pixels))
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_tiny_patch16_224"])
def test_models_of_photographs_are_exported(name, tmp_path):
    network = build_network(name, (3, 64, 64) if "vit" not in name else (3, 224, 224), 4, dropout=0.1, seed=0)
    model = SavedModel(network, tuple("abcd"), network.image_shape).eval()
    assert export_model(model, tmp_path / "model.pt2") <= 1e-4


EXTENDING = [name for name in ALGORITHMS if ALGORITHMS[name].extend is not Algorithm.extend]


@pytest.mark.parametrize("algorithm", EXTENDING)
def test_what_an_algorithm_adds_is_exported(algorithm, make_spec, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arm, "HIDDEN", 8)
    train(make_spec(algorithm=algorithm, steps=2, checkpoint_freq=2), digits, tmp_path, device=torch.device("cpu"))
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "model.pt2")]) == 0
    assert ("depend on the inputs beside them" in capsys.readouterr().out) == ALGORITHMS[algorithm].transductive
    pixels = torch.rand(9, 1, 16, 16)
    model = shiftproof.load(tmp_path)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(pixels), model(model.network.normalisation(pixels)), atol=1e-5, rtol=0)


class _Undecided(nn.Module):
    """Its path depends on its input's values, which no program can hold."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_the_part_that_cannot_be_exported_is_named(tmp_path):
    model = _photograph_model(nn.Sequential(nn.Conv2d(3, 8, 12), nn.Sequential(_Undecided()), nn.Flatten()))
    with pytest.raises(
        ExportError, match=r"the part featurizer\.1\.0 \(_Undecided\) of the model cannot be exported: \w+: "
    ):
        export_model(model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_program_that_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    original = export._Program.forward
    monkeypatch.setattr(export._Program, "forward", lambda self, inputs: original(self, inputs) + 2e-4)
    with pytest.raises(ExportError, match=r"differs from the model by 2\.0e-04, more than 1e-04"):
        export_model(shiftproof.load(run), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_one_batch_size_alone_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :8].reshape(2, 8)

    with pytest.raises(
        ExportError, match=r"the part featurizer\.1 \(Fixed\) of the model takes one size of batch alone: "
    ):
        export_model(_photograph_model(nn.Sequential(nn.Conv2d(3, 8, 12), Fixed())), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["model.pt"],
            "it must be .pt2 or .onnx, or give the format: torch or onnx. Did you mean .pt2?",
        ),
        (["model.pt2", "--format", "onxx"], "unknown format 'onxx'. Did you mean onnx? Valid names: torch, onnx"),
        (["none/model.pt2"], "there is no folder"),
    ],
)
def test_bad_input_is_refused(options, message, run, tmp_path, capsys):
    assert main(["export", str(run), "--output", str(tmp_path / options[0]), *options[1:]]) == 1
    assert message in capsys.readouterr().err


def test_the_format_can_be_given(run, tmp_path):
    assert main(["export", str(run), "--output", str(tmp_path / "program"), "--format", "torch"]) == 0
    assert torch.export.load(tmp_path / "program").module()(torch.rand(3, 1, 16, 16)).shape == (3, 10)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, run, tmp_path, monkeypatch, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    assert main(["export", str(run), "--output", str(tmp_path / "model.onnx")]) == 1
    assert f"{package} is not installed: pip install 'shiftproof[onnx]'" in capsys.readouterr().err
