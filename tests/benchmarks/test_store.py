import json

import pytest

from benchmarks.store import bench_store, main, store_table, write_made_up_results
from shiftproof.base.files import write_json
from shiftproof.studies import Store, Study, make_plan
from shiftproof.tables import as_text


@pytest.mark.slow  # writes and reads 50 MB some ten times
def test_a_store_of_made_up_runs_is_timed(tmp_path, capsys):
    main(["--runs", "1", "--output", str(tmp_path / "bench.json")])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["setting"]["runs"] == 480  # one setting each of 10 optimizers, 16 targets and 3 trials
    assert result["setting"]["evaluations"] == 26
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["resume", "status", "table", "report", "write"]
    assert all(row["again_processor"] > 0 and row["first_processor"] > 0 for row in rows.values())
    assert store_table(result) == printed.rstrip("\n")


def test_made_up_results_are_files_as_runs_write_them(tmp_path):
    study = Study(
        datasets=("VLCS",), optimizers=("adam", "sgd"), trials=1, protocol="swad", steps=401, model="squeezenet1_1"
    )
    plan, store = make_plan(study, absent=True), Store(tmp_path)
    written = write_made_up_results(plan, store)
    contents = [(store.folder(spec) / "result.json").read_bytes() for spec in plan.runs]
    assert sum(map(len, contents)) == written
    write_json(tmp_path / "again.json", json.loads(contents[0]))
    assert (tmp_path / "again.json").read_bytes() == contents[0]
    [first, *_] = json.loads(contents[0])["metrics"]
    assert len(first["domains"]["LabelMe"]["out"]["per_class"]) == 5
    assert "runs finished 8 of 8" in as_text(store.results(plan))


def test_a_store_of_no_runs_is_refused():
    with pytest.raises(ValueError, match="runs must be a whole number above 0, not 0"):
        bench_store(0)
