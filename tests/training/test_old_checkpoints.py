"""Checkpoints of before training was a loop with callbacks are continued to what the code of then reached."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from shiftproof.figures.traces import trace
from shiftproof.training import train
from shiftproof.training.checkpoint import read_saved
from training.old_checkpoints import DIGITS, FOLDER, RUNS, TRACED

CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # results are bit-identical on one machine with one set of versions only


def _without_times(result):
    annealer = result["annealer"] and {**result["annealer"], "seconds": None}
    return {**result, "seconds": None, "annealer": annealer, "versions": None, "spec": None, "weights_sha256": None}


def _recorded_then(result):
    """Return a result without what was not recorded then: other measures than accuracy, and those of a constant."""
    result = {name: value for name, value in result.items() if name != "constant"}
    for record in result["metrics"]:
        for parts in record["domains"].values():
            for score in parts.values():
                if "measures" in score:  # of an evaluation after the checkpoint
                    assert score.pop("measures")["accuracy"] == score["accuracy"]
    return result


def _approximate(value):
    if isinstance(value, dict):
        return {name: _approximate(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_approximate(one) for one in value]
    return pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.parametrize("name", RUNS)
def test_a_run_continues(name, tmp_path):
    shutil.copy(FOLDER / name / "checkpoint.pt", tmp_path)
    before = read_saved(FOLDER / name / "checkpoint.pt", "")["progress"]
    taken = []
    result = train(
        RUNS[name], DIGITS, tmp_path, device=torch.device("cpu"), on_progress=lambda step, loss: taken.append(step)
    )
    assert taken == list(range(before["step"] + 1, 13))
    assert 0 < before["step"] < 12
    assert before["metrics"]
    for record, earlier in zip(result["metrics"], before["metrics"], strict=False):
        assert record["loss"] == earlier["loss"]
        for domain, scores in earlier["domains"].items():  # the target of the selected step is scored further
            assert scores.items() <= record["domains"][domain].items()
    expected = json.loads((FOLDER / name / "result.json").read_text())
    assert result["constant"].keys() == set(RUNS[name].targets)
    assert "measures" in result["metrics"][-1]["domains"]["0"]["out"]
    assert _without_times(_recorded_then(result)) == _approximate(_without_times(expected))
    for part, seconds in before["seconds"].items():
        assert result["seconds"][part] >= seconds
    kept, model = load_file(tmp_path / "model.safetensors"), load_file(FOLDER / name / "model.safetensors")
    torch.testing.assert_close(kept, model, **CLOSE)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_trace_continues(tmp_path):
    shutil.copy(FOLDER / "trace" / "checkpoint.pt", tmp_path / f"{TRACED.spec.name}.checkpoint.pt")
    before = read_saved(FOLDER / "trace" / "checkpoint.pt", "")["progress"]["recorder"]
    expected = read_saved(FOLDER / "trace" / "trace.pt", "")
    found = trace(TRACED, tmp_path)
    assert before["step"] == 4
    assert found.records[:4] == before["records"]
    assert found.records == _approximate(expected["recorder"]["records"])
    assert found.path_steps == expected["path_steps"] == [0, 1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(found.path, expected["path"], **CLOSE)
    torch.testing.assert_close(found.state, expected["state"], **CLOSE)
