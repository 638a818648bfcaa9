import json

import pytest

from benchmarks.annealer import annealer_table, bench_annealer, main
from shiftproof.studies import Study


def test_all_searches_draw_as_many_candidates_and_ours_takes_fewer_passes():
    result = bench_annealer(Study(optimizers=("adam",), fixed={"data.batch_size": 4}), candidates=10, rounds=1)
    rows = {row["name"]: row for row in result["rows"]}
    assert result["setting"]["source domains"] == 3
    released, every, ours = rows["released search"], rows["shiftproof, every domain"], rows["shiftproof"]
    measured = 11 / 10  # the start is measured too
    assert released["ratio"] == 1
    assert released["forward"] == pytest.approx(6 * measured)  # three domains, and their union in a pass of its own
    assert released["backward"] == every["forward"] == every["backward"] == pytest.approx(3 * measured)
    assert ours["forward"] == ours["backward"] <= every["forward"]
    assert every["copies"] == ours["copies"] < 1 <= released["copies"]
    assert all(0 < row["least"] <= row["milliseconds"] <= row["most"] for row in rows.values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "released search" in annealer_table(result)


def test_the_script_writes_what_it_measured(tmp_path, capsys):
    options = ["--candidates", "2", "--rounds", "1", "--batch-size", "2", "--target", "0", "15", "--output"]
    main([*options, str(tmp_path / "bench.json")])
    assert "ms per candidate" in capsys.readouterr().out
    assert json.loads((tmp_path / "bench.json").read_text())["setting"]["source domains"] == 4


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="candidates must be a whole number above 0, not 0"):
        bench_annealer(Study(), candidates=0)
