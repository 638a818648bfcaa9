"""The normalisation of a study: said before training, part of the run and its terms, kept with the model."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import shiftproof
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.models import NORMALISATION, Normalisation, build_network
from shiftproof.studies import FieldError, Study, make_plan, study_data
from shiftproof.studies.study_file import StudyFileError, read_study


@pytest.fixture(autouse=True)
def nothing_said():
    study_data.say.cache_clear()


@pytest.fixture
def weights(tmp_path):
    """A function that writes the weights of a small network, which may state a normalisation, and returns the file."""

    def write(stated=None):
        path = tmp_path / f"{stated}.safetensors"
        tensors = build_network("small_conv", (1, 16, 16), 2, dropout=0.0, seed=0).featurizer.state_dict()
        save_file(tensors, path, None if stated is None else {NORMALISATION: stated})
        return path

    return write


def _study(**fields):
    return Study(
        **{"optimizers": ("adam",), "targets": ("75",), "trials": 1, "steps": 2, "checkpoint_freq": 2, **fields}
    )


def _planned(**fields):
    [grid] = make_plan(_study(**fields)).grids
    return grid.runs[0], grid.terms


def test_a_stated_normalisation_is_part_of_the_run_and_of_its_terms(weights):
    plain, terms = _planned(weights=weights())
    assert plain.normalisation is None
    assert "normalisation" not in terms
    stated, stated_terms = _planned(weights=weights(), normalisation="0.10, 0.2")
    assert (stated.normalisation, stated_terms["normalisation"]) == ("0.1,0.2", "0.1,0.2")
    assert replace(stated, normalisation=None).name == plain.name
    assert stated.name != plain.name
    assert {**terms, "normalisation": "0.1,0.2"} == stated_terms


def test_what_the_file_states_is_a_term_too(weights):
    spec, terms = _planned(weights=weights("0.1,0.2"))
    assert spec.normalisation is None  # the file's fingerprint, which is the spec's, tells it
    assert terms["normalisation"] == "0.1,0.2"


@pytest.mark.parametrize(
    ("in_file", "stated", "line"),
    [
        (
            None,
            None,
            "normalisation half, the default of model small_conv; set normalisation if the weights were trained",
        ),
        ("0.1,0.2", None, "normalisation 0.1,0.2, as the file states; set normalisation to override this"),
        ("0.1,0.2", "0.3,0.4", "normalisation 0.3,0.4, as stated"),
    ],
)
def test_the_normalisation_of_given_weights_is_said_in_one_line_with_its_origin(weights, in_file, stated, line, capsys):
    path = weights(in_file)
    make_plan(_study(weights=path, normalisation=stated, optimizers=("adam", "genie")))
    lines = capsys.readouterr().err.splitlines()
    assert [text for text in lines if "normalisation" in text] == [lines[0]]
    assert lines[0].startswith(f"{path.name}: {line}")


def test_without_weights_nothing_is_said(capsys):
    _, terms = _planned(normalisation="0.3,0.4")
    assert terms["normalisation"] == "0.3,0.4"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stated", "in_file", "field", "words"),
    [
        ("none", None, "normalisation", "must be imagenet, half, or MEAN,STD"),
        ("0.5,0", None, "normalisation", "must be above 0"),
        ("imagenet", None, "normalisation", "imagenet is for 3 channels; the images have 1"),
        ("0.1,0.2,0.3,0.4", None, "normalisation", "images of 1 channel take 2"),
        (None, "imagenet", "weights", r"weights file .* has in its metadata: normalisation imagenet is for 3 channels"),
    ],
)
def test_what_cannot_be_is_refused_before_training(weights, stated, in_file, field, words):
    with pytest.raises(FieldError, match=words) as raised:
        make_plan(_study(weights=weights(in_file), normalisation=stated))
    assert raised.value.field == field


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_a_study_file_with_a_wrong_normalisation_names_the_line(tmp_path, scale):
    path = tmp_path / "study.yaml"
    path.write_text("name: one\nscales:\n  small:\n    normalisation: 0.5,0.5,0.5\n")
    with pytest.raises(StudyFileError, match=r"study\.yaml, line 4: normalisation must be imagenet, half, or MEAN"):
        read_study(path, scale)


def test_a_study_file_states_numbers_between_commas(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("weights: w.pt\nnormalisation: 0.4, 0.25\n")
    study, _ = read_study(path)
    assert study.normalisation == "0.4, 0.25"
    smoke, _ = read_study(path, "smoke")
    assert (smoke.weights, smoke.normalisation) == (None, None)


def test_a_run_keeps_its_normalisation_for_evaluation_and_for_who_starts_from_it(tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    options = ["train", "--target", "75", "--optimizer", "adam", "--steps", "2", "--model", "small_conv"]
    assert main([*options, "--normalisation", "0.1,0.2", "--output", str(first)]) == 0
    assert json.loads((first / "spec.json").read_text())["normalisation"] == "0.1,0.2"
    model = shiftproof.load(first)
    assert model.network.normalisation == Normalisation((0.1,), (0.2,))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    torch.testing.assert_close(model.normalise(pixels), (pixels / 255 - 0.1) / 0.2)
    with safe_open(first / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"normalisation": "0.1,0.2"}

    capsys.readouterr()
    assert main([*options, "--weights", str(first / "model.safetensors"), "--output", str(second)]) == 0
    assert "model.safetensors: normalisation 0.1,0.2, as the file states" in capsys.readouterr().err
    assert shiftproof.load(second).network.normalisation == Normalisation((0.1,), (0.2,))
    assert main([*options, "--weights", str(first / "model.safetensors"), "--normalisation", "half",
                 "--output", str(third)]) == 0  # fmt: skip
    assert shiftproof.load(third).network.normalisation == Normalisation((0.5,), (0.5,))
    losses = [json.loads((folder / "result.json").read_text())["metrics"][-1]["loss"] for folder in (second, third)]
    assert losses[0] != losses[1]


def test_evaluate_uses_the_normalisation_that_the_model_was_kept_with(tmp_path, capsys):
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    for label in range(10):
        (folder := tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for i in [i for i, one in enumerate(domain.targets) if one == label][:3]:
            Image.fromarray(domain.inputs[i, 0]).save(folder / f"{i}.png")
    options = ["train", "--target", "75", "--optimizer", "adam", "--steps", "40", "--normalisation", "0.1,0.3"]
    assert main([*options, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    right = 0
    model = shiftproof.load(tmp_path / "run")
    for path in sorted((tmp_path / "pictures").glob("*/*.png")):
        with Image.open(path) as image:
            pixels = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(1, 1, 16, 16) / 255
        right += model.classes[int(model((pixels - 0.1) / 0.3).argmax())] == path.parent.name
    assert main(["evaluate", str(tmp_path / "run"), "--data-dir", str(tmp_path / "pictures")]) == 0
    assert capsys.readouterr().out.startswith(f"pictures: {100 * right / 30:.1f} % of 30 images\n")
    description = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (description["mean"], description["std"]) == ([0.1], [0.3])
