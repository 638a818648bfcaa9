import json
import multiprocessing
from itertools import islice

import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from shiftproof.bench import bench_data, data_table
from shiftproof.bench.data import Costs, _Loaders, run_time
from shiftproof.cli import main
from shiftproof.models import build_network
from shiftproof.studies import Study, make_plan, open_data

COUNTS = {"art": 8, "photo": 10, "sketch": 12}  # held out: 1, 2 and 2


@pytest.fixture
def root(image_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    return image_tree(
        {
            domain: {name: [f"{i}.png" for i in range(count // 2)] for name in ("cat", "dog")}
            for domain, count in COUNTS.items()
        }
    )


def _study(root):
    return Study(
        datasets=("folder",),
        data_dir=root,
        optimizers=("adam",),
        targets=("sketch",),
        trials=1,
        image_size=16,
        fixed={"data.batch_size": 4},
    )


def test_a_run_is_made_of_its_costs():
    costs = Costs(data=10.0, training=30.0, evaluation=5.0, last_evaluation=8.0)
    short = run_time(costs, 200, 40)  # evaluated after 40, 80, 120, 160 and 200 steps
    assert short == {"seconds": 20 + 60 + 28, "data": 20 / 108, "training": 60 / 108, "evaluation": 28 / 108}
    full = run_time(costs, 5001, 300)  # 16 times, and after the last step
    assert full["seconds"] == pytest.approx(500.1 + 1500.3 + 16 * 5 + 8)
    assert run_time(costs, 3, 10)["seconds"] == pytest.approx(0.3 + 0.9 + 8)


def test_all_ways_are_measured_on_equal_terms(root):
    result = bench_data(_study(root), workers=1, steps=2, rounds=2)
    assert multiprocessing.active_children() == []  # workers left over would slow what is measured next
    ours, usual, best = (result["ways"][name] for name in ("shiftproof", "usual way", "data for nothing"))
    for measured in (*ours["rounds"], *usual["rounds"], *best["rounds"]):
        assert measured["images"]["data"] == measured["images"]["training"] == 2 * 2 * 4
    assert len(ours["rounds"]) == len(usual["rounds"]) == 2
    assert ours["evaluated"] == [1 + 2 + 2, 1 + 2 + 2 + 2 * 10]
    assert usual["evaluated"] == [30, 30]
    assert best["evaluated"] == ours["evaluated"]
    assert best["speed"] == 1
    speeds = [
        (b["data"] + b["training"]) / (r["data"] + r["training"])
        for b, r in zip(best["rounds"], ours["rounds"], strict=True)
    ]
    assert ours["speed"] == pytest.approx(sum(speeds) / 2)
    for way in (ours, usual, best):
        first, second = way["rounds"]
        assert way["costs"]["data"] == pytest.approx((first["data"] + second["data"]) / 2)
        assert way["images_per_second"] > 0
        for run in way["runs"]:
            assert run["data"] + run["training"] + run["evaluation"] == pytest.approx(1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = data_table(result).splitlines()
    assert [line.split() for line in lines if line.startswith("  images")] == [["images", "5", "30", "5"]]
    shares = [line.split()[1::2] for line in lines if line.startswith("  evaluation")]
    assert shares == [[f"{100 * way['runs'][run]['evaluation']:.1f}" for way in (ours, usual, best)] for run in (0, 1)]


def test_the_usual_way_evaluates_the_same_pixels(root):
    turned = root / "art" / "cat" / "0.png"
    with Image.open(turned) as image:
        exif = image.getexif()
        exif[Base.Orientation] = 6  # seen turned to the right
        image.save(turned, exif=exif)
    study = _study(root)
    network = build_network("small_conv", (3, 16, 16), 2, dropout=0.0, seed=0)
    stream = _Loaders(
        open_data(study, "folder"), make_plan(study).runs[0], network, root, 1, torch.device("cpu")
    ).evaluation()
    images, labels = next(stream)
    stream.close()
    known = torch.cat([torch.from_numpy(domain.inputs.copy()) for domain in open_data(study, "folder").domains])
    classes = torch.cat([torch.from_numpy(domain.targets) for domain in open_data(study, "folder").domains])
    distances = (images[:, None] - network.normalisation(known.float() / 255)[None]).abs().amax(dim=(2, 3, 4))
    assert distances.amin(dim=1).max() < 1e-6
    assert torch.equal(classes[distances.argmin(dim=1)], labels)
    assert len(distances.argmin(dim=1).unique()) > max(COUNTS.values())  # of all domains


def test_the_usual_way_augments_a_batch_of_every_source(root):
    study = _study(root)
    network = build_network("small_conv", (3, 16, 16), 2, dropout=0.0, seed=0)
    stream = _Loaders(
        open_data(study, "folder"), make_plan(study).runs[0], network, root, 2, torch.device("cpu")
    ).training()
    batches = list(islice(stream, 2))
    stream.close()
    assert [[images.shape for images, _ in step] for step in batches] == [[(4, 3, 16, 16)] * 2] * 2
    drawn = torch.cat([images for step in batches for images, _ in step])
    assert len(drawn.unique(dim=0)) == len(drawn)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for step in batches for images, _ in step)


def test_the_command_writes_json(root, tmp_path, capsys):
    output = tmp_path / "bench.json"
    options = ["--data-dir", str(root), "--target", "sketch", "--model", "small_conv", "--image-size", "16"]
    options += ["--normalisation", "half"]
    assert main(["bench", "data", *options, "--batch-size", "2", "--steps", "1", "--output", str(output)]) == 0
    assert "one evaluation, s" in capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["setting"]["images per domain and step"] == 2
    assert result["setting"]["target"] == "sketch"
    assert set(result["ways"]) == {"shiftproof", "usual way", "data for nothing"}


def test_bad_input_is_refused(root):
    for entries in ({"workers": 0}, {"workers": 1, "steps": 0}, {"workers": 1, "rounds": 0}):
        with pytest.raises(ValueError, match="must be a whole number above 0, not 0"):
            bench_data(_study(root), **entries)
    with pytest.raises(ValueError, match="on a folder of images"):
        bench_data(Study(targets=("75",)), workers=1)
