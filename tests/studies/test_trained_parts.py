"""Studies that train a part of a network: what is planned, told and kept, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from shiftproof.cli import main
from shiftproof.models import build_network
from shiftproof.studies import (
    FieldError,
    Study,
    combine_runs,
    make_plan,
    open_data,
    read_plan,
    read_results,
    run_study,
    study_costs,
    study_data,
)
from shiftproof.tables import build_tables
from shiftproof.training import Inputs, load, read_result
from shiftproof.training.examples import Examples

SIZE = 32


@pytest.fixture(autouse=True)
def told_anew():
    study_data.say.cache_clear()


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "lenet.safetensors"
    save_file(build_network("small_lenet", (3, SIZE, SIZE), 2, dropout=0.0, seed=3).featurizer.state_dict(), file)
    return file


@pytest.fixture
def folder(image_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    files = {d: {c: {f"{i}.png": (40 * j + i, 90, 120 - 20 * k) for i in range(20)} for j, c in enumerate("xy")}
             for k, d in enumerate(("one", "two", "three"))}  # fmt: skip
    return image_tree(files)


@pytest.fixture
def study_of(folder, weights):
    def make(**fields):
        facts = {
            "datasets": ("folder",), "data_dir": folder, "kind": "photographs", "image_size": SIZE,
            "model": "small_lenet", "weights": weights, "trained": "blocks:1", "optimizers": ("adam",),
            "targets": ("one", "two"), "trials": 1, "steps": 4, "checkpoint_freq": 2, "fixed": {"data.batch_size": 4},
        }  # fmt: skip
        return Study(**{**facts, **fields})

    return make


def _specs(study):
    return make_plan(study).runs


def test_where_a_part_is_trained_its_inputs_are_kept_in_four_views(study_of, capsys):
    [spec, _] = _specs(study_of())
    assert (spec.trained, spec.views, spec.cache) == ("blocks:1", 4, "float16")
    assert "up to 10 are computed once and kept for all runs: 120 pictures of " in (told := capsys.readouterr().err)
    assert "in 5 views, 0.00061 GB in float16" in told  # 120 x 5 x 512 numbers of two bytes
    [whole, _] = _specs(study_of(trained="all"))
    assert (whole.views, whole.cache) == (0, "none")
    [fixed, _] = _specs(study_of(trained="all", views=2))
    assert (fixed.views, fixed.cache) == (2, "none")
    [plain, _] = _specs(study_of(augmentation="none", cache="float32"))
    assert (plain.views, plain.cache) == (0, "float32")
    [small, _] = _specs(study_of(kind="small_images"))
    assert (small.views, small.cache) == (0, "float16")


def test_where_a_part_is_trained_the_short_search_has_other_rates(study_of):
    rates = {}
    for trained in ("blocks:1", "head", "all"):
        for search in ("short", "protocol"):
            [spec, _] = _specs(study_of(trained=trained, search=search))
            rates[trained, search] = spec.hparams["optimizer.lr"]
    assert [rates[trained, "short"] for trained in ("blocks:1", "head", "all")] == [3e-4, 3e-4, 1e-4]
    assert {rates[trained, "protocol"] for trained in ("blocks:1", "head", "all")} == {5e-5}


def test_a_method_that_reads_pictures_trains_without_the_cache_and_that_is_told(study_of, capsys):
    specs = _specs(study_of(algorithms=("erm", "mixup")))
    assert {(spec.algorithm, spec.cache, spec.views) for spec in specs} == {("erm", "float16", 4), ("mixup", "none", 4)}
    told = capsys.readouterr().err
    assert "mixup reads pictures or inner stages: it trains without the cache of the frozen part" in told


def test_a_model_that_cannot_be_cut_is_told_or_refused(study_of, tmp_path, capsys):
    file = tmp_path / "vit.safetensors"
    save_file(build_network("test_vit", (3, 32, 32), 2, dropout=0.0, seed=0).featurizer.state_dict(), file)
    options = {"model": "test_vit", "weights": file}
    [spec, _] = _specs(study_of(trained="cls_token", **options))
    assert spec.cache == "none"
    assert (
        "the frozen part of test_vit is computed anew at every step: cls_token, which belongs to none of its parts, is "
        "trained"
    ) in capsys.readouterr().err
    for trained in ("head", "blocks:2"):
        [spec, _] = _specs(study_of(trained=trained, **options))
        assert spec.cache == "float16"
    with pytest.raises(FieldError, match="cannot be kept: cls_token, which belongs to none of its parts, is trained"):
        _specs(study_of(trained="cls_token", cache="float16", **options))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"cache_limit": 0.0005},
            r"would take more than 0.0005 GB: 120 pictures of .* in 5 views, 0.00061 GB in float16",
        ),
        ({"trained": "all", "cache": "float16"}, "cache float16 is for pictures of which a part is trained"),
        ({"trained": "head", "weights": None}, "to train head alone leaves the rest as it starts, at random"),
        ({"trained": "layer9"}, "no module or parameter is called layer9. Its blocks are 0, 3, 6, 11"),
        ({"trained": "*", "cache": "float16"}, "is the whole network: train all"),
        ({"views": 0}, "views must be a whole number above 0, not 0"),
        (
            {"trained": "head", "annealers": ("gga",), "steps": 300},
            "gga searches the featurizer's weights, which are frozen",
        ),
    ],
)
def test_what_is_refused(fields, message, study_of):
    with pytest.raises(FieldError, match=message):
        _specs(study_of(**fields))


def test_a_study_shares_one_cache_and_its_table_says_so(study_of, tmp_path):
    study = study_of(algorithms=("erm", "mixup"), trials=2)
    plan = make_plan(study)
    assert study_costs(study, plan, plan.distinct)  # the forecast of its time makes no cache
    assert not list((tmp_path / "cache").glob("trunk-*"))
    run_study(study, tmp_path / "out", 2)
    assert len(list((tmp_path / "cache").glob("trunk-*"))) == 1
    [table] = build_tables(read_results(tmp_path / "out"))
    assert table.terms["trained"] == "blocks:1"
    assert (table.terms["views"], table.terms["cache"]) == (4, "float16 and none")
    assert all(row.mean.trials == 2 for row in table.rows)


@pytest.mark.parametrize("cache", ["float32", "none"])
def test_combined_runs_are_scored_on_what_is_kept_of_their_trunk(cache, study_of, folder, tmp_path, monkeypatch):
    study = study_of(cache=cache, hparam_trials=3, targets=("one",), steps=8, checkpoint_freq=4)
    run_study(study, tmp_path / "out", 1)
    if cache != "none":
        monkeypatch.setattr(Examples, "in_view", None)  # pictures are not asked for
    combine_runs(tmp_path / "out", data_dir=folder)
    monkeypatch.undo()
    made = [spec for spec in read_plan(tmp_path / "out").runs if spec.members]
    assert [spec.averaging for spec in made] == ["diwa", "diwa_greedy", "ensemble"]
    data = open_data(study, "folder")
    for spec in made:
        members = [load(tmp_path / "out" / "runs" / name).network for name in spec.members]
        if spec.averaging != "ensemble":
            members = [load(tmp_path / "out" / "runs" / spec.name).network]
        inputs = Inputs(data, spec, members[0].normalisation, torch.device("cpu"))
        result = read_result(tmp_path / "out" / "runs" / spec.name)
        for domain, name in enumerate(data.domain_names):
            with torch.inference_mode():
                chances = [(_mean([m(x).double().softmax(1) for m in members]), y)
                           for x, y in inputs.evaluation_batches(domain, "out")]  # fmt: skip
            losses = [-p[range(len(y)), y].log() for p, y in chances]
            assert result["metrics"][0]["domains"][name]["out"]["loss"] == pytest.approx(
                torch.cat(losses).mean().item(), rel=1e-5
            )


def _mean(tensors):
    return torch.stack(tensors).mean(0)


def test_from_the_command_line(folder, weights, tmp_path, capsys):
    options = f"--data-dir {folder} --dataset folder --kind photographs --image-size {SIZE} --model small_lenet"
    options += f" --weights {weights} --train head --views 2 --cache float32 --steps 2 --batch-size 4 --target one"
    assert main(["train", *options.split(), "--optimizer", "adam", "--output", str(tmp_path / "run")]) == 0
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert (spec["trained"], spec["views"], spec["cache"]) == ("head", 2, "float32")
    assert main(["evaluate", str(tmp_path / "run"), "--data-dir", str(folder)]) == 0
    assert "one: " in capsys.readouterr().out
