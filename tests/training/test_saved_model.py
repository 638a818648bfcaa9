import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import shiftproof
import shiftproof.training.callbacks.evaluation as evaluation_module
import shiftproof.training.run as run_module
from shiftproof.algorithms import arm
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.protocol import score
from shiftproof.training import evaluate_folder, train
from shiftproof.training.evaluation import evaluate


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first images of the target domain as files, three a class, in `<class>/<image>`."""
    root = tmp_path_factory.mktemp("pictures")
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    for label in range(10):
        (root / str(label)).mkdir()
        for i in np.flatnonzero(domain.targets == label)[:3]:
            Image.fromarray(domain.inputs[i, 0]).save(root / str(label) / f"{i}.png")
    return root


def test_the_transform_is_that_of_validation(run, pictures):
    model = shiftproof.load(run)
    domain = DATASETS["rotated_digits"].open(None, None).domains[5]
    path = next((pictures / "3").iterdir())
    with Image.open(path) as image:
        transformed = model.transform(image)
    assert torch.equal(model.transform(path), transformed)
    assert torch.equal(model.transform(str(path)), transformed)
    expected = model.normalise(torch.from_numpy(domain.inputs[[int(path.stem)]]))[0]
    assert torch.equal(transformed, expected)
    assert transformed.shape == (1, 16, 16)
    with Image.open(path) as image:
        assert model.transform(image.convert("RGB").resize((40, 50))).shape == (1, 16, 16)


def test_evaluate_scores_a_folder(run, pictures, capsys):
    model = shiftproof.load(run)
    right = 0
    for path in pictures.glob("*/*.png"):
        with Image.open(path) as image:
            right += model.classes[model(model.transform(image)[None]).argmax()] == path.parent.name
    assert main(["evaluate", str(run), "--data-dir", str(pictures)]) == 0
    first, measures = capsys.readouterr().out.splitlines()
    assert first == f"{pictures.name}: {100 * right / 30:.1f} % of 30 images"
    assert measures.startswith(f"measures of {pictures.name}: accuracy {100 * right / 30:.1f} %, balanced_accuracy ")


def test_evaluate_measures_what_score_measures(run, pictures, capsys):
    model = shiftproof.load(run)
    paths = sorted(pictures.glob("*/*.png"))
    with torch.inference_mode():
        logits = model(torch.stack([model.transform(path) for path in paths])).numpy()
    expected = score("classification", logits, np.array([int(path.parent.name) for path in paths]))
    measured = evaluate_folder(run, pictures)[pictures.name]["measures"]
    assert list(measured) == list(expected)
    assert measured == pytest.approx(expected, abs=1e-5)
    assert main(["evaluate", str(run), "--data-dir", str(pictures)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert f"macro_f1 {100 * expected['macro_f1']:.1f} %" in line
    assert f"nll {expected['nll']:.3f}" in line


def test_evaluate_takes_labels_from_a_file(run, pictures, tmp_path, capsys):
    lines = ["file,class"]
    for path in pictures.glob("*/*.png"):
        shutil.copy(path, tmp_path)
        lines.append(f"{path.name},{path.parent.name}")
    assert main(["evaluate", str(run), "--data-dir", str(pictures)]) == 0
    of_folders = capsys.readouterr().out.replace(pictures.name, tmp_path.name).splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines))
    command = ["evaluate", str(run), "--data-dir", str(tmp_path), "--labels", str(labels)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == of_folders
    labels.write_text("\n".join(lines[:-2]))
    assert main(command) == 0
    counted, unlabelled, _ = capsys.readouterr().out.splitlines()
    assert counted.endswith("% of 28 images")
    assert unlabelled == f"2 images have no label in {labels} and were left out"
    labels.write_text("\n".join([*lines, "none.png,3"]))
    assert main(command) == 1
    assert f"names pictures that are missing: {tmp_path / 'none.png'} (row 31)" in capsys.readouterr().err


def test_evaluate_scores_every_domain_of_a_tree(run, pictures, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(pictures, tmp_path / name)
    assert main(["evaluate", str(run), "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a", "b", "measures of a", "measures of b"]
    assert all(line.endswith("% of 30 images") for line in lines[:2])


def test_evaluate_refuses_bad_input(run, pictures, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--data-dir", str(pictures)]) == 1
    assert "holds no model" in capsys.readouterr().err
    (tmp_path / "cat").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "cat" / "1.png")
    assert main(["evaluate", str(run), "--data-dir", str(tmp_path)]) == 1
    assert "does not know the classes cat" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data-dir", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data-dir", str(pictures), "--device", "cuda:77"]) == 1
    assert "device cuda:77 is not available" in capsys.readouterr().err


def test_the_description_says_what_the_model_takes(run):
    description = json.loads((run / "model.json").read_text())
    assert description == {
        "model": "small_conv",
        "algorithm": "erm",
        "classes": [str(digit) for digit in range(10)],
        "image_shape": [1, 16, 16],
        "mean": [0.5],
        "std": [0.5],
        "freeze_batch_norm": False,
    }


def test_a_description_of_before_algorithms_were_recorded_can_be_read(run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    path = tmp_path / "old" / "model.json"
    description = json.loads(path.read_text())
    del description["algorithm"]
    path.write_text(json.dumps(description))
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(shiftproof.load(tmp_path / "old")(images), shiftproof.load(run)(images))


@pytest.mark.parametrize("algorithm", ["arm", "mtl"])
def test_what_an_algorithm_adds_to_the_network_is_saved(algorithm, make_spec, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(arm, "HIDDEN", 8)
    spec = make_spec(algorithm=algorithm, steps=4)
    evaluated = []

    def recorded(predict, batches, *options):
        def keep(images):
            logits = predict(images)
            evaluated.append((images, logits))
            return logits

        return evaluate(keep, batches, *options)

    monkeypatch.setattr(evaluation_module, "evaluate", recorded)
    monkeypatch.setattr(run_module, "warm_up", lambda *_: None)  # it evaluates too, another network
    train(spec, digits, tmp_path, device=torch.device("cpu"))
    model = shiftproof.load(tmp_path)
    with torch.inference_mode():
        for images, logits in evaluated[:3]:
            torch.testing.assert_close(model(images), logits)
        images, logits = evaluated[0]
        assert not torch.allclose(model(images[:5]), logits[:5])  # other images beside them
