import json

import pytest

from benchmarks.diagnostics import bench_diagnostics, diagnostics_table
from shiftproof.studies import Study

STUDY = Study(optimizers=("adam",))


def test_all_take_turns_on_the_same_samples_and_the_loop_is_slowest():
    result = bench_diagnostics(STUDY, samples=64, chunk_size=32, rounds=3)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        *("backward pass", "gradient moments", "loop over samples"),
        *("training step", "recorded step"),
    ]
    assert result["setting"]["source domains"] == 3
    assert result["setting"]["samples"] == 192
    assert rows["backward pass"]["ratio"] == 1
    assert 1 < rows["gradient moments"]["ratio"] < rows["loop over samples"]["ratio"]
    assert rows["recorded step"]["ratio"] > 1
    for name, row in rows.items():
        assert 0 < row["least"] <= row["milliseconds"] <= row["most"]
        baseline = "training step" if "step" in name else "backward pass"
        assert row["ratio"] == pytest.approx(row["milliseconds"] / rows[baseline]["milliseconds"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "gradient moments" in diagnostics_table(result)


@pytest.mark.parametrize(("name", "least"), [("samples", 2), ("chunk_size", 1), ("rounds", 1)])
def test_bad_numbers_are_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least {least}, not {least - 1}"):
        bench_diagnostics(STUDY, **{name: least - 1})
