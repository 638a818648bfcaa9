"""Small images under each dialect of the protocol: its network, rates and batches, planned and trained."""

import json

import numpy as np
import pytest
from PIL import Image

from data.mnist_files import idx, write_mnist
from shiftproof.base.randomness import seed_hash
from shiftproof.data import DATASETS, DatasetEntry
from shiftproof.data.check import check_data
from shiftproof.models import Normalisation, stated_normalisation
from shiftproof.protocol import PROTOCOLS
from shiftproof.studies import FieldError, Study, make_plan, run_study
from shiftproof.studies.study_data import model_of
from studies.outputs import rows_of

PUBLISHED = ("domainbed", "domainbed-head", "swad")
MNIST = ("rotated_mnist", "colored_mnist")

pytestmark = pytest.mark.usefixtures("opened_anew")


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "mnist")


def study(folder, *datasets, **fields):
    return Study(datasets=datasets, data_dir=folder, **{"optimizers": ("adam",), "trials": 1, **fields})


def tree(root, width, height):
    random = np.random.default_rng(0)
    for domain in ("ink", "oil", "pen"):
        for name in ("x", "y"):
            (root / domain / name).mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 256, (height, width), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{i}.png")
    return root


def models(plan):
    found = {grid.dataset: {spec.model for spec in grid.runs} for grid in plan}
    assert {grid.dataset: {grid.terms["model"]} for grid in plan} == found
    return {name: model for name, (model,) in found.items()}


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_mnist_is_of_the_small_network_in_published_dialects(protocol, mnist):
    plan = make_plan(study(mnist, *MNIST, "rotated_digits", protocol=protocol))
    chosen = "mnist_cnn" if protocol in PUBLISHED else "small_conv"
    assert models(plan) == {"rotated_mnist": chosen, "colored_mnist": chosen, "rotated_digits": "small_conv"}
    named = study(mnist, *MNIST, protocol=protocol, model="small_lenet")
    assert set(models(make_plan(named)).values()) == {"small_lenet"}


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize(
    ("width", "height", "published"),
    [(28, 28, "mnist_cnn"), (32, 32, "wide_resnet_16_2"), (24, 24, "small_lenet"), (48, 48, "small_lenet")],
)
def test_a_folder_of_small_images_has_the_network_of_their_size(protocol, width, height, published, tmp_path):
    folder = tree(tmp_path / "own", width, height)
    plan = make_plan(study(folder, "folder", protocol=protocol))
    assert set(models(plan).values()) == {published if protocol in PUBLISHED else "small_lenet"}


def test_the_size_is_that_of_training_and_photographs_have_none_of_these(tmp_path):
    folder = tree(tmp_path / "own", 48, 40)
    resized = study(folder, "folder", protocol="domainbed", image_size=32)
    assert set(models(make_plan(resized)).values()) == {"wide_resnet_16_2"}
    with pytest.raises(FieldError, match="are photographs, and no model is named"):
        make_plan(study(folder, "folder", protocol="domainbed", image_size=32, kind="photographs"))
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(FieldError, match="no model is named: name the one whose weights"):
        model_of(study(folder, "folder", protocol="domainbed", weights=weights), "folder")


def test_photographs_and_vectors_keep_the_model_of_their_set(monkeypatch, mnist):
    entry = DatasetEntry(DATASETS["rotated_mnist"].open, kind="photographs", model="squeezenet1_1")
    monkeypatch.setitem(DATASETS._entries, "guest", entry)
    assert model_of(study(mnist, "guest", protocol="domainbed"), "guest") == "squeezenet1_1"
    assert set(models(make_plan(study(None, "vowels", protocol="domainbed"))).values()) == {"mlp"}


@pytest.mark.parametrize("protocol", PUBLISHED)
@pytest.mark.parametrize("dataset", MNIST)
def test_settings_are_the_published_ones(protocol, dataset, mnist):
    """Setting 0 is DomainBed's defaults for small images; the others are draws of its distributions."""
    trial, settings = 0, range(4)
    plan = make_plan(study(mnist, dataset, protocol=protocol, search="protocol", hparam_trials=4))
    drawn = {spec.hparam_seed: spec.hparams for spec in plan.runs}
    assert sorted(drawn) == list(settings)
    assert {(spec.steps, spec.checkpoint_freq) for spec in plan.runs} == {(5001, 100)}
    for number in settings:
        if number == 0:
            lr, batch_size = 1e-3, 64
        elif protocol == "domainbed-head":
            seed = seed_hash(number, trial)
            lr = 10 ** np.random.RandomState(seed_hash(seed, "lr")).uniform(-4.5, -2.5)
            batch_size = int(2 ** np.random.RandomState(seed_hash(seed, "batch_size")).uniform(3, 9))
        else:
            random = np.random.RandomState(seed_hash(number, trial))
            random.choice([0.0, 0.1, 0.5])  # a dropout, of which the network has none
            lr = 10 ** random.uniform(-4.5, -2.5)
            batch_size = int(2 ** random.uniform(3, 9))
        assert drawn[number] == {
            "data.batch_size": batch_size,
            "model.dropout": 0.0,
            "optimizer.lr": lr,
            "optimizer.weight_decay": 0.0,
        }


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_a_study_of_each_is_trained(protocol, mnist, tmp_path):
    short = {"protocol": protocol, "search": "protocol", "steps": 2, "checkpoint_freq": 1}
    short |= {"fixed": {"data.batch_size": 4}, "selection": ("training_domain", "oracle")}
    for name in MNIST:
        target = "30" if name == "rotated_mnist" else "minus90"
        run_study(study(mnist, name, targets=(target,), **short), tmp_path / name, 1)
    folder = tree(tmp_path / "own", 32, 32)
    run_study(study(folder, "folder", targets=("oil",), **short), tmp_path / "folder", 1)
    chosen = {"rotated_mnist": "mnist_cnn", "colored_mnist": "mnist_cnn", "folder": "wide_resnet_16_2"}
    if protocol not in PUBLISHED:
        chosen = {"rotated_mnist": "small_conv", "colored_mnist": "small_conv", "folder": "small_lenet"}
    for name, model in chosen.items():
        [row] = rows_of(tmp_path / name)
        assert row["status"] == "finished", row
        [run] = (tmp_path / name / "runs").iterdir()
        assert json.loads((run / "model.json").read_text())["model"] == model
        channels = {"rotated_mnist": 1, "colored_mnist": 2, "folder": 3}[name]
        pixels = Normalisation((0.0,) * channels, (1.0,) * channels)
        assert (stated_normalisation(run / "model.safetensors", channels) == pixels) == (protocol in PUBLISHED)


@pytest.mark.slow
def test_files_of_mnists_size_are_planned_whole(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        digits = random.integers(0, 10, count, dtype=np.uint8)
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(digits))
    assert check_data(tmp_path, "rotated_mnist").ok
    plan = make_plan(study(tmp_path, *MNIST, protocol="domainbed", search="protocol"))
    assert models(plan) == dict.fromkeys(MNIST, "mnist_cnn")
    assert [grid.images for grid in plan] == [70_000, 70_000]
    assert [len(grid.runs) for grid in plan] == [6, 3]
