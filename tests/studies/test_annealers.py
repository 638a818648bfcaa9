"""Annealers in studies: what the tables say of them, what a plan counts, and the figure of agreement."""

import csv
import io

import pytest

from made_up import results_of
from shiftproof.cli import main
from shiftproof.figures.agreement import measure_agreement, write_agreement
from shiftproof.studies import Study, make_plan, study_costs
from shiftproof.tables import as_csv, as_text, build_tables

FIXED = {"data.batch_size": 4, "annealer.start": 2, "annealer.end": 3, "annealer.candidates": 3}


def _study(*annealers, **changes):
    fixed = {name: value for name, value in FIXED.items() if "gga" in annealers or "annealer." not in name}
    return Study(
        **{"optimizers": ("adam",), "annealers": annealers, "targets": ("0",), "steps": 4, "fixed": fixed} | changes
    )


def _results(study):
    results = results_of(make_plan(study), lambda spec: (0.9, 0.5, 0.5))
    for spec in results.plan.distinct:
        if spec.annealer != "none":
            searched = spec.annealer == "gga"
            results.result(spec)["annealer"] = {
                "similarity_before": -0.25 if spec.trial_seed else None,
                "similarity_after": 0.5 if searched else None,
                "accepted": spec.trial_seed if searched else None,
                "extra_passes": 2.5,
                "seconds": 1.5,
            }
    return results


def test_what_annealers_report_stands_below_the_accuracy():
    results = _results(_study("none", "gga", "gga_l"))
    rows = {row.method.annealer: row for row in build_tables(results)[0].rows}
    assert rows["none"].annealing == {}
    assert rows["gga"].annealing == {
        "similarity_before": -0.25, "similarity_after": 0.5, "accepted": 1.0, "extra_passes": 2.5, "seconds": 1.5
    }  # fmt: skip
    text = as_text(results)
    [head] = [i for i, line in enumerate(text.splitlines()) if "similarity before" in line]
    shown = [line.split()[-5:] for line in text.splitlines()[head + 1 : head + 3]]
    assert shown == [["-0.250000", "0.500000", "1.0", "2.5", "1.5"], ["-0.250000", "-", "-", "2.5", "1.5"]]
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert {line["annealer_accepted"] for line in lines if line["annealer"] == "gga"} == {"1.0"}
    assert {line["annealer_accepted"] for line in lines if line["annealer"] == "none"} == {""}


def test_without_an_annealer_the_tables_say_nothing_of_one():
    results = _results(_study("none"))
    assert "similarity" not in as_text(results) + as_csv(results)


def test_a_plan_counts_the_passes_of_annealers(monkeypatch):
    monkeypatch.setattr("shiftproof.studies.timing._median_time", lambda work: 1.0)  # whatever else the machine does
    study = _study("none", "gga", "gga_l", trials=1)
    plan = make_plan(study)
    runs = {spec.annealer: spec for spec in plan.runs}
    [none, gga, ggal] = [study_costs(study, plan, [runs[name]])[0] for name in ("none", "gga", "gga_l")]
    assert (none.passes, gga.passes, ggal.passes) == (4, 4 + 2 * (3 + 1), 4 + 4)
    seconds = [3600 * (cost.hours - none.hours) for cost in (gga, ggal)]
    assert seconds == pytest.approx([8, 4])


def test_agreement_is_measured_at_every_step_and_disturbs_no_training(tmp_path):
    measured = measure_agreement(_study("none", "gga", targets=None))
    assert [(one.method, one.step) for one in measured] == [
        (method, step) for method in ("erm + adam", "erm + adam + gga") for step in range(1, 5)
    ]
    assert all(-1 <= one.least <= one.mean <= 1 for one in measured)
    assert measured[0][2:] == measured[4][2:]  # before the search the runs are one
    files = write_agreement(measured, tmp_path / "figure")
    assert [path.suffix for path in files] == [".csv", ".svg", ".png"]
    assert all(path.stat().st_size for path in files)
    assert len(files[0].read_text().splitlines()) == 1 + len(measured)


def test_the_command_draws_the_figure(tmp_path, capsys):
    fixed = [word for name, value in FIXED.items() for word in ("--set", f"{name}={value}")]
    assert main(["figure", "agreement", "--steps", "4", *fixed, "--output", str(tmp_path)]) == 0
    assert "agreement.svg" in capsys.readouterr().out
    assert main(["figure", "agreement", "--steps", "4", "--output", str(tmp_path)]) == 1
    assert "GGA searches at steps 100 to 200" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["smoke"])
def test_the_study_of_the_paper_runs_with_every_annealer(scale, tmp_path, capsys):
    file = str(tmp_path / "x" / "annealing")
    assert main(["study", "plan", "annealing", "--scale", scale, "--output", file]) == 0
    assert "skipped" not in capsys.readouterr().out


def test_the_report_shows_what_annealers_did(tmp_path):
    from shiftproof.report import write_report

    page = write_report(_results(_study("none", "gga", "gga_l")), tmp_path).read_text()
    table = page[page.index('<table id="annealing"') :].partition("</table>")[0]
    assert table.count("<tr>") == 1 + 2
    assert "-0.250000" in table
    assert "erm + adam + gga_l" in table
    assert 'id="annealing"' not in write_report(_results(_study("none")), tmp_path).read_text()
