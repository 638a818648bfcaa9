"""Features of a model as data: `encode` writes them, and `compare --dataset features` trains on them."""

import csv
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import open_features, open_folder
from shiftproof.models import build_network, weights_fingerprint
from shiftproof.studies import Study, encode, make_plan, read_plan

CLASSES, DOMAINS = ("cat", "dog"), ("art", "photo", "sketch")
SIDE = 33
pytestmark = pytest.mark.usefixtures("opened_anew")


@pytest.fixture
def shapes(image_tree):
    """Three domains of drawings of photographs, two of each, whose classes differ in nothing but noise."""
    files = [f"n01_{photo}-{drawing}.png" for photo in range(5) for drawing in (1, 2)]
    return image_tree({domain: dict.fromkeys(CLASSES, files) for domain in DOMAINS})


@pytest.fixture
def weights(tmp_path):
    network = build_network("squeezenet1_1", (3, SIDE, SIDE), 2, dropout=0.0, seed=7)
    save_file(network.featurizer.state_dict(), tmp_path / "trained.safetensors", {"normalisation": "half"})
    return tmp_path / "trained.safetensors"


def _options(shapes, *more, model="squeezenet1_1"):
    return [
        *f"encode --dataset folder --kind photographs --image-size {SIDE} --model {model}".split(),
        *("--data-dir", str(shapes), *map(str, more)),
    ]


def test_features_are_the_featurizers_of_normalised_pictures(shapes, weights, tmp_path, capsys):
    output = tmp_path / "features"
    assert main(_options(shapes, "--weights", weights, "--output", output)) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "shapes_squeezenet1_1: 60 rows of 512 features in 3 domains", f"written: {output}"
    ]  # fmt: skip
    assert "trained.safetensors: normalisation half, as the file states" in printed.err
    encoded, pictures = open_features(output), open_folder(shapes, SIDE, "photographs")
    network = build_network("squeezenet1_1", (3, SIDE, SIDE), 2, dropout=0.0, seed=0, weights=weights).eval()
    for domain, source in zip(encoded.domains, pictures.domains, strict=True):
        assert domain.name == source.name
        with torch.no_grad():
            expected = network.featurizer((torch.from_numpy(np.array(source.inputs)) / 255 - 0.5) / 0.5)
        np.testing.assert_allclose(domain.inputs, expected.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(domain.targets, source.targets)
        np.testing.assert_array_equal(domain.groups, source.groups)
    facts = json.loads((output / "features.json").read_text())
    assert facts["encoder"]["weights_fingerprint"] == weights_fingerprint(weights)
    assert facts["encoder"]["data_fingerprint"] == pictures.fingerprint
    again = encode(
        Study(
            datasets=("folder",), data_dir=shapes, kind="photographs", image_size=SIDE, model="squeezenet1_1",
            weights=weights, normalisation="imagenet",
        ),
        tmp_path / "other",
    )  # fmt: skip
    assert again.fingerprint != encoded.fingerprint


def test_methods_are_compared_on_features(shapes, weights, tmp_path, capsys):
    output, store = tmp_path / "features", tmp_path / "store"
    assert main(_options(shapes, "--weights", weights, "--output", output)) == 0
    compare = (
        f"compare --dataset features --data-dir {output} --optimizers sgd adam --trials 1 --steps 20 --jobs 1 "
        f"--split grouped --targets art photo --output {store}"
    ).split()
    assert main(compare) == 0
    printed = capsys.readouterr().out
    assert "shapes_squeezenet1_1" in printed
    [grid] = read_plan(store).grids
    assert grid.dataset == "shapes_squeezenet1_1"
    assert grid.terms["encoder"] == (
        f"squeezenet1_1, weights trained.safetensors ({weights_fingerprint(weights)}), pictures of {SIDE} x {SIDE} "
        "pixels, normalisation half"
    )
    assert {spec.model for spec in grid.runs} == {"mlp"}
    assert "the network whose features the inputs are" in (store / "report.html").read_text()
    rows = list(csv.DictReader((store / "table.csv").open()))
    assert rows
    run = store / "runs" / grid.runs[0].name
    assert main(["diagnose", str(run), "--what", "sharpness", "--data-dir", str(output)]) == 0
    linear = make_plan(Study(datasets=("features",), data_dir=output, model="linear", optimizers=("sgd",), trials=1))
    assert {spec.data_fingerprint for spec in linear.runs} == {open_features(output).fingerprint}


def test_rows_of_a_table_that_name_pictures_are_encoded(shapes, tmp_path):
    pytest.importorskip("pyarrow")
    lines = ["file,site,age"]
    lines += [f"{path.relative_to(shapes)},{path.parts[-3]},{i / 8}" for i, path in enumerate(shapes.rglob("*.png"))]
    (shapes / "ages.csv").write_text("\n".join(lines))
    options = f"encode --dataset table --metadata {shapes / 'ages.csv'} --domain site --label age --task regression"
    more = f"--image file --kind photographs --image-size {SIDE} --model squeezenet1_1 --output {tmp_path / 'ages'}"
    with pytest.warns(UserWarning, match="these are features of a random start, unless model 'squeezenet1_1' brings"):
        assert main([*options.split(), *more.split()]) == 0
    opened = open_features(tmp_path / "ages")
    assert (opened.name, opened.task, opened.classes) == ("ages_squeezenet1_1", "regression", ("age",))
    ages = np.concatenate([domain.targets for domain in opened.domains])
    assert sorted(ages.tolist()) == [i / 8 for i in range(60)]


def test_features_of_a_random_start_are_the_same_every_time(shapes, tmp_path):
    fields = {"datasets": ("folder",), "data_dir": shapes, "kind": "photographs", "image_size": SIDE}
    with pytest.warns(UserWarning, match="these are features of a random start, unless model 'squeezenet1_1' brings"):
        first, again = (encode(Study(model="squeezenet1_1", **fields), tmp_path / name) for name in "ab")
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--model resnet81", "unknown model 'resnet81'. Did you mean"),
        ("--model linear", "--model: model 'linear' takes vectors: name a model of pictures, whose features to write"),
        ("--model resnet18 --weights {weights}", "does not fit the model: "),
        ("--model squeezenet1_1 --weights absent.pt", "there is no weights file absent.pt"),
        ("--model squeezenet1_1 --image-size 8", "model 'squeezenet1_1' cannot take images of 8 x 8 pixels"),
        ("--model squeezenet1_1 --normalisation 1,2,3", "normalisation must be imagenet, half, or MEAN,STD"),
        ("--model squeezenet1_1 --device cuda:99", "device cuda:99 is not available here"),
        ("--model squeezenet1_1 --data-dir absent", "absent: no such folder"),
        ("--model squeezenet1_1 --output {shapes}", "shapes exists already; name another to encode into it"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(shapes, weights, tmp_path, capsys, given, message):
    options = given.format(weights=weights, shapes=shapes).split()
    defaults = ["--output", str(tmp_path / "features"), "--data-dir", str(shapes)]
    if "--image-size" not in options:
        defaults += ["--image-size", str(SIDE)]
    assert main(["encode", "--dataset", "folder", "--kind", "photographs", *defaults, *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("shiftproof: error: ")
    assert message in error
    assert not (tmp_path / "features").exists()
    assert not (tmp_path / "features.partial").exists()


def test_vectors_are_not_encoded(tmp_path):
    with pytest.raises(FieldError, match="vowels holds vectors, and only pictures are encoded"):
        encode(Study(datasets=("vowels",), model="squeezenet1_1"), tmp_path / "features")
    with pytest.raises(FieldError, match="encode one data set at a time, not 2"):
        encode(Study(datasets=("vowels", "rotated_digits"), model="squeezenet1_1"), tmp_path / "features")


def test_an_interrupt_says_that_nothing_was_written(shapes, tmp_path):
    shutil.copytree(shapes / "art", shapes / "more")
    slow = (
        "import signal, sys, time; from shiftproof.cli import main; from shiftproof.studies import encoding\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "def stops(*_):\n    print('here', flush=True)\n    time.sleep(60)\n    yield\n"
        "encoding._features = stops\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", slow, *_options(shapes, "--output", tmp_path / "features")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted; nothing was written"
    assert not list(tmp_path.glob("features*"))


def test_a_damaged_picture_ends_it(shapes, tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(shapes / "art" / "cat" / "small.png")
    (shapes / "art" / "cat" / "text.png").write_text("no image")
    assert main(_options(shapes, "--output", tmp_path / "features")) == 1
    assert "1 image(s) cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()
