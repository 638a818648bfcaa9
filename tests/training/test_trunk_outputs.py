"""Runs that read what the frozen trunk put out: they end as those that compute it at every step."""

import gc
import json
import os
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import shiftproof
from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS
from shiftproof.data import CacheError, Domain, DomainDataset
from shiftproof.figures.traces import Subject
from shiftproof.models import build_network, freeze_all_but, weights_fingerprint
from shiftproof.models import cut as cut_network
from shiftproof.training import RunSpec, read_predictions, train, trunk_outputs
from shiftproof.training.inputs import Inputs
from shiftproof.training.loop import Loop
from shiftproof.training.trunk_outputs import TrunkOutputs
from training.killed import train_killed_at

CPU = torch.device("cpu")
SIZE = 32
COUNT = 30
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def photographs():
    random = np.random.default_rng(0)

    def domain(name, shift):
        targets = np.arange(COUNT) % 3
        images = random.integers(0, 120, (COUNT, 3, SIZE, SIZE))
        images[np.arange(COUNT), targets] += 60 + shift  # a class has its colour
        return Domain(name, images.astype(np.uint8), targets.astype(np.int64))

    domains = tuple(domain(name, 20 * i) for i, name in enumerate(NAMES))
    return DomainDataset("colours", domains, ("red", "green", "blue"), "photographs", "made up")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "lenet.safetensors"
    save_file(build_network("small_lenet", (3, SIZE, SIZE), 3, dropout=0.0, seed=3).featurizer.state_dict(), file)
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def spec_of(photographs, weights):
    def make(**changes):
        facts = {
            "dataset": photographs.name,
            "data_fingerprint": photographs.fingerprint,
            "algorithm": "erm",
            "optimizer": "adam",
            "annealer": "none",
            "targets": ("b",),
            "trial_seed": 0,
            "hparam_seed": 0,
            "hparams": {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.01},
            "steps": 8,
            "checkpoint_freq": 4,
            "model": "small_lenet",
            "image_size": SIZE,
            "weights": weights_fingerprint(weights),
            "trained": "blocks:2",
            "views": 3,
            "cache": "float32",
        }
        return RunSpec(**{**facts, **changes})

    return make


def _numbers(result):
    """All losses and measures of a result, in order."""
    scores = [s for r in result["metrics"] for parts in r["domains"].values() for s in parts.values()]
    return [r["loss"] for r in result["metrics"]] + [value for s in scores for value in (s["loss"], s["accuracy"])]


@pytest.mark.parametrize("protocol", ["shiftproof", "domainbed"])  # of which the second augments held-out pictures
@pytest.mark.parametrize("trained", ["head", "blocks:2"])
def test_in_float32_a_run_agrees_with_one_without(protocol, trained, spec_of, photographs, weights, tmp_path):
    results = {}
    for cache in ("float32", "none", "float16"):
        spec = spec_of(protocol=protocol, trained=trained, cache=cache)
        results[cache] = train(spec, photographs, tmp_path / cache, device=CPU, weights=weights)
    assert _numbers(results["float32"]) == pytest.approx(_numbers(results["none"]), rel=1e-5)
    losses = [[record["loss"] for record in results[cache]["metrics"]] for cache in ("float16", "none")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    models = [load_file(tmp_path / cache / "model.safetensors") for cache in ("none", "float32")]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", ["shiftproof", "domainbed"])
def test_without_augmentation_a_run_agrees_too(protocol, spec_of, photographs, weights, tmp_path):
    specs = [spec_of(protocol=protocol, augmentation="none", views=0, cache=cache) for cache in ("float32", "none")]
    results = [train(s, photographs, tmp_path / s.cache, device=CPU, weights=weights) for s in specs]
    assert _numbers(results[0]) == pytest.approx(_numbers(results[1]), rel=1e-5)


def test_what_a_run_reached_is_loaded_into_the_whole_network(spec_of, photographs, weights, tmp_path):
    """As figures and diagnoses do with the weights of a trace."""
    spec = spec_of()
    loop = Loop(spec, photographs, CPU, weights)
    loop.run()
    algorithm = Subject(spec, photographs, CPU, weights).algorithm(loop.algorithm.state_dict())
    inputs = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    cut = loop.steps.cut
    with torch.inference_mode():
        torch.testing.assert_close(algorithm.network(inputs), loop.algorithm.eval().network(cut.trunk(inputs)))


STEPPED = [*FROM_SCRATCH, "lp_ft"]


@pytest.mark.parametrize("algorithm", [name for name in STEPPED if not ALGORITHMS[name].reads_pictures])
def test_every_algorithm_that_reads_features_agrees(algorithm, spec_of, photographs, weights, tmp_path):
    results = [
        train(
            spec_of(algorithm=algorithm, cache=cache, steps=4),
            photographs,
            tmp_path / cache,
            device=CPU,
            weights=weights,
        )
        for cache in ("float32", "none")
    ]
    assert _numbers(results[0]) == pytest.approx(_numbers(results[1]), rel=1e-4)


def test_algorithms_that_read_pictures_or_inner_stages_are_known():
    found = {name for name in ALGORITHMS if ALGORITHMS[name].reads_pictures}
    pictures = {"arm", "lisa", "miro", "mixstyle", "mixup", "sagnet", "cutmix", "mixstyle_domains", "orgmixup"}
    assert found == pictures


def test_without_views_every_step_augments_anew(spec_of, photographs):
    def seen(views):
        inputs = Inputs(photographs, spec_of(views=views, cache="none"), build("small_lenet").normalisation, CPU)
        return {
            picture.numpy().tobytes()
            for step in range(1, 160)
            for batch, _ in inputs.batches(step)
            for picture in batch
        }

    def build(model):
        return build_network(model, (3, SIZE, SIZE), 3, dropout=0.0, seed=0)

    rows = sum(len(Inputs(photographs, spec_of(cache="none"), None, CPU).rows(i, "in")) for i in (0, 2))
    assert len(seen(3)) == 3 * rows
    assert len(seen(0)) > 1200  # of 2 x 4 x 159 pictures


def test_the_model_is_whole_and_predicts_what_was_scored(spec_of, photographs, weights, tmp_path):
    train(spec_of(), photographs, tmp_path, device=CPU, weights=weights)
    model, kept = shiftproof.load(tmp_path), read_predictions(tmp_path)
    last = max(kept.outputs)
    if sorted(kept.outputs) != [last]:  # the model is of the selected step
        return
    outputs, _ = kept.part(last, "b", "out")
    pictures = photographs.domains[1].inputs[kept.row[(kept.domain == 1) & kept.held_out]]
    with torch.inference_mode():
        found = model(model.normalise(torch.from_numpy(pictures)))
    np.testing.assert_allclose(found.numpy(), outputs.astype(np.float32), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("averaging", ["none", "ema"])
def test_killed_it_ends_as_undisturbed(averaging, spec_of, photographs, weights, tmp_path, cache):
    spec = spec_of(averaging=averaging, optimizer="genie_adamw", cache="float16")
    train(spec, photographs, tmp_path / "whole", device=CPU, weights=weights)
    train_killed_at(6, spec, photographs, tmp_path / "killed", weights=weights)
    for file in cache.glob("trunk-*/*.npy"):  # it is made again, if it is lost meanwhile
        file.unlink()
    train(spec, photographs, tmp_path / "killed", device=CPU, weights=weights)
    whole, killed = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "killed"))
    assert {**whole, "seconds": None} == {**killed, "seconds": None}


# The files


def _outputs(dtype=torch.float32, facts=("made up",), trained="blocks:2", seen=None, scale=1.0):
    network = build_network("small_lenet", (3, SIZE, SIZE), 3, dropout=0.0, seed=0)
    freeze_all_but(network, trained)
    with torch.no_grad():
        network.featurizer[1].weight *= scale
    pictures = torch.rand(2, 4, 150, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def of(domain, rows, view):
        if seen is not None:
            seen.append((domain, view, len(rows)))
        return pictures[domain, view, rows]

    part = cut_network(network)
    return TrunkOutputs(part, facts, [150, 150], dtype, of), part, pictures


def _alive():
    return {id(found) for found in gc.get_objects() if isinstance(found, TrunkOutputs)}


def test_a_run_that_has_ended_holds_no_file(spec_of, photographs, weights, tmp_path):
    spec = spec_of(averaging="ema")
    train(spec, photographs, tmp_path / "first", device=CPU, weights=weights)
    gc.collect()
    before = _alive()  # of other tests
    gc.disable()  # else a collection may come in time
    try:
        train(spec, photographs, tmp_path / "second", device=CPU, weights=weights)
        after = _alive()
    finally:
        gc.enable()
    assert list((tmp_path / "cache").glob("trunk-*"))
    assert after == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_are_the_trunks_outputs_for_their_views(dtype):
    outputs, part, pictures = _outputs(dtype)
    rows, views = np.array([3, 149, 3, 70]), np.array([1, 2, 3, 1])
    found = outputs.rows(1, rows, views)
    with torch.inference_mode():
        expected = part.trunk(pictures[1, views, rows])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(outputs.rows(0, rows, None), part.trunk(pictures[0, 0, rows]), rtol=1e-3, atol=1e-3)


def _damage_truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def _damage_header(file):
    file.write_bytes(b"no array" + file.read_bytes()[8:])


def _damage_shape(file):
    np.save(file, np.load(file)[:-1])


def _damage_type(file):
    np.save(file, np.load(file).astype(np.float64))


def _damage_bracket(file):
    file.write_bytes(file.read_bytes().replace(b"}", b" ", 1))


def _damage_output(file):
    _flip_a_bit(file, -20)


def _damage_sum(file):
    _flip_a_bit(file, -1)


def _flip_a_bit(file, place):
    written, changed = bytearray(file.read_bytes()), file.stat().st_mtime
    written[place] ^= 1
    file.write_bytes(written)
    os.utime(file, (changed + 1, changed + 1))  # some file systems count time in coarse steps


DAMAGES = [
    _damage_truncate, _damage_header, _damage_bracket, _damage_shape, _damage_type, _damage_output, _damage_sum,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(damage, cache):
    seen = []
    outputs, *_ = _outputs(seen=seen)
    expected = outputs.rows(0, np.arange(5), None)
    assert seen == [(0, 0, 64), (0, 0, 64), (0, 0, 22)]
    [file] = cache.glob("trunk-*/*.npy")
    again, *_ = _outputs(seen=seen)
    again.rows(0, np.arange(5), None)
    assert len(seen) == 3  # read, not made
    damage(file)
    again, *_ = _outputs(seen=seen)
    assert torch.equal(again.rows(0, np.arange(5), None), expected)
    assert len(seen) == 6


def test_one_that_was_interrupted_leaves_nothing_that_is_read(cache):
    seen = []
    outputs, *_ = _outputs(seen=seen)
    pictures = outputs._pictures

    def interrupted(domain, rows, view):
        if rows[0] > 0:
            raise KeyboardInterrupt
        return pictures(domain, rows, view)

    outputs._pictures = interrupted
    with pytest.raises(KeyboardInterrupt):
        outputs.rows(0, np.arange(5), None)
    assert not list(cache.glob("trunk-*/*.npy"))
    assert not list(cache.glob("trunk-*/*.partial"))
    (next(cache.glob("trunk-*")) / ".0-0.npy.partial").write_bytes(b"of a process that was killed")
    outputs._pictures = pictures
    assert len(outputs.rows(0, np.arange(5), None)) == 5


def test_other_facts_types_and_parts_are_other_files(cache):
    for options in ({}, {"facts": ("other",)}, {"dtype": torch.float16}, {"trained": "head"}):
        _outputs(**options)[0].rows(0, np.arange(2), None)
    assert len(list(cache.glob("trunk-*"))) == 4


def test_what_does_not_fit_the_disk_is_told_before_it_is_filled(monkeypatch, cache):
    seen = []
    outputs, *_ = _outputs(seen=seen)
    usage = trunk_outputs.shutil.disk_usage(cache.parent)
    monkeypatch.setattr(trunk_outputs.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CacheError, match=r"the outputs of the trunk take 0.00 GB, but"):
        outputs.make([(0, 0), (1, 0)])  # of all together
    with pytest.raises(
        CacheError, match=r"take 0.00 GB, but .* has 0.00 GB left; set SHIFTPROOF_CACHE to another folder"
    ):
        outputs.rows(0, np.arange(2), None)
    assert not seen


def test_what_float16_cannot_hold_is_told():
    outputs, *_ = _outputs(torch.float16, trained="blocks:3", scale=1e7)
    with pytest.raises(
        CacheError, match="not finite in float16, first for picture 0 of domain 0; keep them in float32"
    ):
        outputs.rows(0, np.arange(2), None)


def test_processes_that_make_the_same_files_share_the_work():
    seen, wanted = [], [(domain, view) for domain in (0, 1) for view in range(4)]
    begun = threading.Barrier(2)

    def work():
        outputs, *_ = _outputs(seen=seen)
        begun.wait()
        outputs.make(wanted)
        assert len(outputs.rows(1, np.arange(3), np.array([1, 2, 3]))) == 3

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted((*key, n) for key in wanted for n in (64, 64, 22))
