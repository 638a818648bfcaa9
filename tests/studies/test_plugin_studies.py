"""Studies whose parts come from plug-ins: killed, changed, moved, and without the plug-in."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plugin_files import forgotten, write_examples
from processes import wait_until
from shiftproof import load
from shiftproof.base.plugins import PluginError, import_plugins
from shiftproof.cli import main
from shiftproof.protocol import RULES, Choice, SelectionRule
from studies.outputs import rows_of, state_of

SHORT = [
    "--dataset",
    "rotated_digits",
    "--targets",
    "75",
    "--trials",
    "1",
    "--steps",
    "4",
    "--checkpoint-freq",
    "2",
    "--jobs",
    "1",
]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture(autouse=True)
def plugins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_examples(tmp_path)


def _compare(*options, output="out"):
    with forgotten():
        return main(["compare", *SHORT, "--output", output, *options])


TILTED = ("--import", "tilted.py", "--algorithms", "tilted", "--optimizers", "adam")


def test_killed_a_study_with_a_plugin_ends_as_an_undisturbed_one(tmp_path, capsys):
    long = [*TILTED, "--steps", "60", "--checkpoint-freq", "4"]
    assert _compare(*long, output="undisturbed") == 0
    command = [sys.executable, "-m", "shiftproof", "compare", *SHORT, *long, "--output", "killed"]
    with subprocess.Popen(command, **QUIET) as driver:
        wait_until(lambda: list(tmp_path.glob("killed/runs/*/checkpoint.pt")), driver)
        os.kill(driver.pid, signal.SIGKILL)
    assert not list(tmp_path.glob("killed/runs/*/result.json"))
    assert _compare(*long, output="killed") == 0
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "undisturbed")


def test_a_changed_plugin_is_told_and_no_run_mixes_two_versions(plugins, tmp_path, capsys):
    assert _compare(*TILTED) == 0
    [result] = tmp_path.glob("out/runs/*/result.json")
    first = result.read_text()
    plugins["tilted"].write_text(plugins["tilted"].read_text() + "\n# another version\n")
    assert _compare(*TILTED, "--optimizers", "adam", "sgd") == 0
    told = capsys.readouterr().err
    assert "the plug-in tilted.py has changed since 1 of these runs were trained or begun" in told
    assert result.read_text() == first  # an ended run is kept
    assert len(list(tmp_path.glob("out/plugins/tilted-*.py"))) == 2
    versions = {
        json.loads(file.read_text())["versions"]["tilted.py"] for file in tmp_path.glob("out/runs/*/result.json")
    }
    assert len(versions) == 2
    # a run that has begun starts again: the checkpoint of the other version, here a broken one, is not read
    (result.parent / "checkpoint.pt").write_bytes(b"of another version")
    result.unlink()
    assert _compare(*TILTED) == 0
    assert json.loads(result.read_text())["versions"]["tilted.py"] != json.loads(first)["versions"]["tilted.py"]
    assert _compare(*TILTED) == 0
    assert "has changed" not in capsys.readouterr().err.splitlines()[-1]


def test_without_the_plugin_the_table_prints_and_what_needs_it_is_named(plugins, tmp_path, capsys):
    assert _compare(*TILTED, "--model", "strided_net", "--import", "strided_net.py") == 0
    expected = capsys.readouterr().out
    moved = tmp_path / "elsewhere"
    shutil.copytree("out", moved)
    for file in plugins.values():
        file.unlink()
    assert main(["study", "table", str(moved)]) == 0
    assert capsys.readouterr().out.strip() in expected
    assert main(["study", "report", str(moved)]) == 0
    assert main(["study", "status", str(moved)]) == 0
    [run] = (moved / "runs").iterdir()
    needs = r"'strided_net' comes from a plug-in that was not imported: give --import strided_net.py, or call"
    with pytest.raises(PluginError, match=needs):
        load(run)
    (tmp_path / "pictures" / "0").mkdir(parents=True)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data-dir", "pictures"]) == 1
    assert "give --import strided_net.py" in capsys.readouterr().err
    assert main(["diagnose", str(run), "--what", "sharpness"]) == 1
    assert "algorithm 'tilted' comes from a plug-in that was not imported" in capsys.readouterr().err


def test_with_the_kept_files_a_model_loads_elsewhere(tmp_path, capsys):
    assert _compare(*TILTED, "--model", "strided_net", "--import", "strided_net.py") == 0
    [run] = tmp_path.glob("out/runs/*")
    with forgotten():
        import_plugins(map(str, tmp_path.glob("out/plugins/*.py")))
        model = load(run)
    assert model.classes == tuple("0123456789")


def test_a_table_by_a_plugins_rule_prints_without_it_until_results_change(tmp_path, capsys):
    rule = ("--import", "worst_source.py", "--selection", "worst_source", "--optimizers", "adam", "sgd")
    assert _compare(*rule) == 0
    expected = capsys.readouterr().out
    moved = tmp_path / "elsewhere"
    shutil.copytree("out", moved, copy_function=shutil.copy)  # with other times
    assert main(["study", "table", str(moved)]) == 0
    assert capsys.readouterr().out.strip() in expected
    (moved / "index.jsonl").unlink()
    assert main(["study", "table", str(moved)]) == 0  # by what runs.jsonl has
    assert capsys.readouterr().out.strip() in expected
    (moved / "runs.jsonl").unlink()
    assert main(["study", "status", str(moved)]) == 0  # as of a study that was killed before its first table
    capsys.readouterr()
    assert main(["study", "table", str(moved)]) == 1
    [kept] = (moved / "plugins").iterdir()
    needs = f"selection rule 'worst_source' comes from a plug-in that was not imported: give --import {kept}, or call"
    assert needs in capsys.readouterr().err
    with forgotten():
        assert main(["study", "table", str(moved), "--import", str(kept)]) == 0
    assert capsys.readouterr().out.strip() in expected
    with forgotten():
        assert main(["study", "table", str(moved), "--import", "worst_source.py"]) == 0
    assert capsys.readouterr().out.strip() in expected


def test_a_changed_rule_scores_its_runs_anew(plugins, capsys):
    rule = ("--import", "worst_source.py", "--selection", "worst_source", "--optimizers", "adam")
    assert _compare(*rule, "--steps", "8") == 0
    [before] = rows_of("out")
    text = plugins["worst_source"].read_text()
    plugins["worst_source"].write_text(text.replace("best = max(", "best = min("))
    assert _compare(*rule, "--steps", "8") == 0
    [after] = rows_of("out")
    assert before["selection"]["worst_source"]["step"] != after["selection"]["worst_source"]["step"]
    assert after["selection"]["oracle"] == before["selection"]["oracle"]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda curves: 1 / 0, "selection rule 'guest' raised ZeroDivisionError: division by zero"),
        (lambda curves: curves.metrics[0], "'guest' must return a Choice of one of the run's evaluations"),
        (lambda curves: Choice({**curves.metrics[0]}, None), "must return a Choice of one of the run's evaluations"),
        (lambda curves: Choice(curves.metrics[0], "0.3"), "must give a finite number as validation score, not '0.3'"),
        (
            lambda curves: Choice(curves.metrics[0], float("nan")),
            "must give a finite number as validation score, not nan",
        ),
    ],
)
def test_a_rule_that_is_wrong_is_named_and_no_result_is_called_damaged(choose, message, capsys):
    with forgotten():
        RULES.register("guest", SelectionRule(choose))
        assert main(["compare", *SHORT, "--output", "out", "--optimizers", "adam", "--selection", "guest"]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "damaged" not in told


def test_a_plugin_that_cannot_be_imported_is_named_with_the_line_of_the_study(plugins, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("import torch\nraise OSError('no licence')\n")
    (tmp_path / "own.yaml").write_text("algorithms: [tilted]\nimports:\n- tilted.py\n- broken.py\n")
    with forgotten():
        assert main(["study", "plan", "own.yaml"]) == 1
    place = f"{tmp_path / 'broken.py'}, line 2"
    told = capsys.readouterr().err
    assert f"own.yaml, line 4: the plug-in broken.py cannot be imported: OSError: no licence, in {place}" in told
    for command in (["compare"], ["list"], ["study", "table", "out"], ["data", "check", "."]):
        assert main([*command, "--import", "broken.py"]) == 1
        assert f"OSError: no licence, in {place}" in capsys.readouterr().err


def test_a_run_alone_and_on_two_devices_takes_plugins(plugins, tmp_path, capsys):
    one = ["train", "--target", "75", "--steps", "4", "--import", "tilted.py", "--optimizer", "lion"]
    with forgotten():
        assert main([*one, "--import", "lion.py", "--output", "one"]) == 0
    assert json.loads((tmp_path / "one/spec.json").read_text())["plugins"].keys() == {"lion.py"}
    assert [file.name.rpartition("-")[0] for file in (tmp_path / "one/plugins").iterdir()] == ["lion"]
    with forgotten():
        assert main([*one, "--import", "lion.py", "--output", "two", "--devices", "2"]) == 0
    assert (tmp_path / "two/result.json").exists()


def test_a_module_that_changes_under_a_driver_ends_the_study_and_not_its_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "guest_tilted.py"
    module.write_text((tmp_path / "tilted.py").read_text())
    with forgotten():
        import_plugins(["guest_tilted"])
        module.write_text(module.read_text() + "# another version\n")
        arguments = ["compare", *SHORT, "--import", "guest_tilted", "--algorithms", "tilted", "--output", "out"]
        assert main(arguments) == 1
    assert "the plug-in guest_tilted differs from the driver's" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*/result.json"))
    with forgotten():
        assert main(arguments) == 0


def test_a_tracker_and_an_annealer_of_a_plugin_work_in_workers(tmp_path, capsys):
    (tmp_path / "guest_parts.py").write_text(
        """
from shiftproof.annealing import ANNEALERS, Annealer
from shiftproof.training.tracking import TRACKERS, TrackerEntry


class Shrink(Annealer):
    def edit_gradients(self, parameters, step, domain_losses):
        for p in parameters:
            p.grad.mul_(0.5)


class Lines:
    def __init__(self, run):
        self.file = run.folder / "lines.txt"

    def write(self, scalars, step):
        with self.file.open("a") as file:
            file.write(f"{step} {scalars['loss']}\\n")

    def end(self, status):
        with self.file.open("a") as file:
            file.write(status)

    def close(self):
        pass


ANNEALERS.register("shrink", Shrink)
TRACKERS.register("lines", TrackerEntry("Lines", (), Lines))
"""
    )
    assert (
        _compare("--import", "guest_parts.py", "--annealers", "shrink", "--optimizers", "sgd", "--track", "lines") == 0
    )
    [lines] = tmp_path.glob("out/runs/*/lines.txt")
    assert [line.split()[0] for line in lines.read_text().splitlines()] == ["2", "4", "finished"]


def test_a_scripts_own_rule_is_never_taken_from_the_index(capsys):
    steps = []
    for chosen in (0, -1):
        with forgotten():
            RULES.register(
                "guest", SelectionRule(lambda curves, chosen=chosen: Choice(curves.metrics[chosen], np.float32(0.5)))
            )
            assert main(["compare", *SHORT, "--output", "out", "--optimizers", "adam", "--selection", "guest"]) == 0
        steps.append(rows_of("out")[0]["selection"]["guest"]["step"])
    assert steps == [2, 4]
    report = Path("out/report.html").read_text()
    assert "It was not used to choose" not in report  # nobody knows what the rule reads


def test_a_renamed_plugin_is_the_same_version(plugins, tmp_path, capsys):
    assert _compare(*TILTED) == 0
    plugins["tilted"].rename(tmp_path / "renamed.py")
    capsys.readouterr()
    assert _compare("--import", "renamed.py", "--algorithms", "tilted", "--optimizers", "adam") == 0
    assert "has changed" not in capsys.readouterr().err
