"""What a run puts out at the steps that its rules select is kept, and the recorded measures follow from it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from shiftproof.base.files import DamagedFileError
from shiftproof.data import DATASETS
from shiftproof.data.splits import split_domain
from shiftproof.protocol import score
from shiftproof.training import PREDICTIONS_FILE, Loop, read_predictions, read_result, train
from shiftproof.training.callbacks import predictions as predictions_module

CPU = torch.device("cpu")


def _trained(spec, dataset, folder):
    result = train(spec, dataset, folder, device=CPU)
    return result["metrics"], read_predictions(folder)


def _check_measures(kept, metrics):
    """Compare what follows from every kept step with what was recorded, as closely as float16 allows."""
    for step, parts in ((record["step"], record["domains"]) for record in metrics):
        for domain in kept.domains if step in kept.outputs else ():
            for part, scores in parts[domain].items():
                outputs, targets = kept.part(step, domain, part)
                assert len(outputs) == scores["count"]
                measures = score(kept.task, outputs, targets)
                if kept.task == "regression":
                    assert measures == pytest.approx(scores["measures"], rel=1e-6)
                else:
                    assert measures["nll"] == pytest.approx(scores["measures"]["nll"], rel=1e-3)
                    # barely trained logits are near each other, and a row or two are at a tie
                    assert measures["accuracy"] == pytest.approx(scores["accuracy"], abs=2.5 / scores["count"])


@pytest.mark.parametrize("protocol", ["shiftproof", "domainbed", "swad"])
def test_the_selected_steps_and_the_last_are_kept(make_spec, digits, tmp_path, protocol):
    metrics, kept = _trained(make_spec(protocol=protocol, steps=20, checkpoint_freq=4), digits, tmp_path)
    validation = [
        np.mean([parts["out"]["accuracy"] for name, parts in record["domains"].items() if name != "30"])
        for record in metrics
    ]
    expected = {metrics[int(np.argmax(validation))]["step"], metrics[-1]["step"]}
    if protocol == "swad":  # its oracle takes the step too
        expected |= {metrics[int(np.argmax([r["domains"]["30"]["out"]["accuracy"] for r in metrics]))]["step"]}
    assert set(kept.outputs) == expected
    assert all(outputs.dtype == np.float16 for outputs in kept.outputs.values())
    _check_measures(kept, metrics)


def test_rows_are_those_of_the_data_set(make_spec, digits, tmp_path):
    spec = make_spec()
    _, kept = _trained(spec, digits, tmp_path)
    assert kept.ids is None
    assert (kept.task, kept.classes, kept.domains) == (digits.task, digits.classes, tuple(digits.domain_names))
    for i, domain in enumerate(digits.domains):
        split = split_domain(domain, spec.split, spec.trial_seed, i)
        here = kept.domain == i
        np.testing.assert_array_equal(kept.row[here & kept.held_out], split.out)
        np.testing.assert_array_equal(
            kept.row[here & ~kept.held_out], split.in_ if domain.name in spec.targets else np.array([], np.int64)
        )
        np.testing.assert_array_equal(kept.targets[here], domain.targets[kept.row[here]])


def test_outputs_are_those_that_were_scored(make_spec, digits, tmp_path, monkeypatch):
    scored = {}

    def passed(loop, step, domain, part, outputs):
        scored[step, digits.domain_names[domain], part] = outputs.numpy()
        pass_outputs(loop, step, domain, part, outputs)

    pass_outputs = Loop.pass_outputs
    monkeypatch.setattr(Loop, "pass_outputs", passed)
    _, kept = _trained(make_spec(), digits, tmp_path)
    checked = 0
    for (step, domain, part), outputs in scored.items():
        if step in kept.outputs:
            np.testing.assert_array_equal(kept.part(step, domain, part).outputs, outputs.astype(np.float16))
            checked += len(outputs)
    assert checked == sum(map(len, kept.outputs.values()))


def test_where_any_step_may_be_selected_all_are_kept(make_spec, digits, tmp_path):
    metrics, kept = _trained(make_spec(score_targets=True, steps=20), digits, tmp_path)
    assert sorted(kept.outputs) == [record["step"] for record in metrics]
    _check_measures(kept, metrics)


@pytest.mark.parametrize("averaging", ["ema", "swad"])
def test_averaged_weights_are_what_predicted(make_spec, digits, tmp_path, averaging):
    options = {"protocol": "swad"} if averaging == "swad" else {}
    metrics, kept = _trained(make_spec(averaging=averaging, steps=20, **options), digits, tmp_path)
    if averaging == "swad":
        metrics = [record for record in metrics if "averaged" in record]
        assert sorted(kept.outputs) == [metrics[0]["step"]]
    _check_measures(kept, metrics)


def test_regression_is_kept_in_float32(make_spec, tmp_path):
    vowels = DATASETS["vowels"].open(None, None)
    domains = tuple(
        dataclasses.replace(domain, targets=domain.inputs[:, 0].astype(np.float32)) for domain in vowels.domains[:4]
    )
    names = [np.array([f"{domain.name} {i}" for i in range(len(domain))]) for domain in domains]
    domains = tuple(dataclasses.replace(domain, ids=ids) for domain, ids in zip(domains, names, strict=True))
    dataset = dataclasses.replace(
        vowels, name="first", domains=domains, classes=("first",), task="regression", fingerprint="of the first"
    )
    spec = make_spec(
        dataset=dataset.name, data_fingerprint=dataset.fingerprint, task="regression", model="linear", kind="vectors",
        targets=(domains[1].name,), hparams={"data.batch_size": 8, "model.dropout": 0.0, "optimizer.lr": 0.01},
    )  # fmt: skip
    metrics, kept = _trained(spec, dataset, tmp_path)
    assert {outputs.dtype for outputs in kept.outputs.values()} == {np.dtype(np.float32)}
    assert kept.ids.tolist() == [names[i][row] for i, row in zip(kept.domain, kept.row, strict=True)]
    _check_measures(kept, metrics)


def test_beyond_the_limit_the_selected_steps_stay_and_then_nothing(make_spec, digits, tmp_path, monkeypatch):
    spec = make_spec(score_targets=True, steps=20)
    metrics, kept = _trained(spec, digits, tmp_path / "all")
    one = next(iter(kept.outputs.values())).nbytes
    monkeypatch.setattr(predictions_module, "PREDICTIONS_BYTES", 2 * one)
    _, few = _trained(spec, digits, tmp_path / "few")
    assert metrics[-1]["step"] in few.outputs
    assert len(few.outputs) <= 2
    for step, outputs in few.outputs.items():
        np.testing.assert_array_equal(outputs, kept.outputs[step])
    monkeypatch.setattr(predictions_module, "PREDICTIONS_BYTES", one - 1)
    (tmp_path / "all" / "result.json").unlink()  # so that it is trained again where predictions are kept already
    assert _trained(spec, digits, tmp_path / "all")[1] is None


def test_a_damaged_file_is_named(make_spec, digits, tmp_path):
    _trained(make_spec(), digits, tmp_path)
    file = tmp_path / PREDICTIONS_FILE
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DamagedFileError, match=PREDICTIONS_FILE):
        read_predictions(tmp_path)


def test_results_do_not_depend_on_what_is_kept(make_spec, digits, tmp_path, monkeypatch):
    train(make_spec(), digits, tmp_path / "kept", device=CPU)
    monkeypatch.setattr(predictions_module, "PREDICTIONS_BYTES", 0)
    train(make_spec(), digits, tmp_path / "not", device=CPU)
    kept, other = ({**read_result(tmp_path / n), "seconds": None} for n in ("kept", "not"))
    assert json.dumps(kept) == json.dumps(other)
    assert not (tmp_path / "not" / PREDICTIONS_FILE).exists()
