import dataclasses
import math

import pytest

from shiftproof.studies.plan import read_spec
from shiftproof.training import RunSpec

SPEC = RunSpec(
    dataset="rotated_digits",
    data_fingerprint="x",
    algorithm="erm",
    optimizer="adam",
    annealer="none",
    targets=("30",),
    trial_seed=1,
    hparam_seed=2,
    hparams={"data.batch_size": 8, "optimizer.lr": 0.001},
    steps=10,
    checkpoint_freq=2,
    model="small_conv",
)


def test_fields_that_are_added_later_leave_the_names_of_runs_as_they_were():
    assert dataclasses.replace(SPEC, results_version=4).name == "c23fd8d88644dd7b"


def test_a_run_is_called_as_tables_call_its_method():
    spec = dataclasses.replace(SPEC, annealer="gga", variant="2x", targets=("30", "45"))
    assert str(spec.method) == "erm + adam + gga, 2x"
    assert spec.label() == "erm + adam + gga, 2x on 30+45, trial 1, setting 2"
    assert spec.label(dataset=True) == "erm + adam + gga, 2x on rotated_digits, 30+45, trial 1, setting 2"


@pytest.mark.parametrize(
    "change",
    [
        {"averaging": "swad"},
        {"averaging": "ema"},
        {"score_targets": True},
        {"protocol": "domainbed"},
        {"precision": "bf16"},
        {"kind": "photographs"},
        {"kind": "small_images"},
        {"normalisation": "half"},
        {"clip_norm": 1.0},
        {"schedule": "cosine"},
        {"warm_up": 5},
        {"layer_decay": 0.75},
        {"l2_sp": 0.01},
        {"class_vectors": "x"},
        {"hparams": {"data.batch_size": 8, "optimizer.lr": 0.002}},
    ],
)
def test_what_changes_results_changes_the_name(change):
    assert dataclasses.replace(SPEC, **change).name != SPEC.name


@pytest.mark.parametrize("change", [{"variant": "longer"}, {"hparam_seed": 7}])
def test_labels_change_no_name(change):
    assert dataclasses.replace(SPEC, **change).name == SPEC.name


def test_earlier_results_keep_the_name_that_they_were_recorded_under():
    assert dataclasses.replace(SPEC, results_version=3).name == "5be91b274db2249a"
    recorded = dataclasses.asdict(SPEC)
    del recorded["results_version"]  # as version 3 wrote it
    assert read_spec(recorded).name == "5be91b274db2249a"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400])
@pytest.mark.parametrize("name", ["optimizer.lr", "clip_norm", "steps", "trial_seed"])
def test_a_number_that_json_cannot_hold_is_refused_by_name(name, value):
    change = {"hparams": {**SPEC.hparams, name: value}} if name == "optimizer.lr" else {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a finite number, not {value!r}"):
        dataclasses.replace(SPEC, **change)


def test_what_becomes_of_a_spec_later_is_refused_when_it_is_named():
    spec = dataclasses.replace(SPEC, hparams=dict(SPEC.hparams))
    spec.hparams["optimizer.lr"] = math.inf
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = spec.name
