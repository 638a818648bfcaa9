"""What `make check-gpu` does with its checks; the checks themselves are tried by `make check-gpu DRY=1`."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.check_gpu import checks
from benchmarks.check_gpu.checks import Check, run_checks
from benchmarks.check_gpu.children import Ended
from benchmarks.check_gpu.figures import Figure, Goal
from benchmarks.check_gpu.pictures import CLASSES, make_pictures
from benchmarks.check_gpu.plan import plan
from benchmarks.check_gpu.sizes import DRY, GPU
from benchmarks.check_gpu.table import markdown
from processes import HANG
from shiftproof.cli.parser import make_parser

ROOT = Path(__file__).parents[1]


def shell(name, script, seconds=10.0, **options):
    return Check(name, ("sh", "-c", script), seconds, **options)


@pytest.fixture
def run(tmp_path):
    """A function that runs checks and returns their records by name."""

    def run(*several, seconds=100.0, keep=lambda records: None):
        with (tmp_path / "log").open("w+b") as log:
            records = run_checks(several, seconds, log, keep, folder=tmp_path)
        return {record["name"]: record for record in records}

    return run


class Held:
    """A pipe that children write to; `ended` waits until none of them is left that has it open."""

    def __init__(self, folder):
        self.path = folder / "pipe"
        os.mkfifo(self.path)
        self._end = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        # the shell and what it started have the pipe open, and go on for ever
        self.script = f"exec 3>'{self.path}'; sleep 100000 & echo begun >&3; wait"

    def begun(self):
        return self._wait() == b"begun\n"

    def ended(self):
        return self._wait() == b""

    def _wait(self):
        assert select.select([self._end], [], [], HANG)[0]
        return os.read(self._end, 100)


def test_a_check_that_never_ends_is_ended_with_what_it_started_and_the_next_run(run, tmp_path):
    held = Held(tmp_path)
    records = run(shell("endless", held.script, 0.5), shell("next", "echo here", 9.5), seconds=40)
    assert held.begun()
    assert held.ended()
    assert records["endless"]["status"] == "stopped"
    assert records["endless"]["reason"] == "its time was up after 2 s"
    assert records["endless"]["seconds"] >= 2
    assert records["next"]["status"] == "done"


def test_what_a_check_leaves_running_is_ended_with_it(run, tmp_path):
    held = Held(tmp_path)
    records = run(shell("leaves", held.script.removesuffix("; wait")))
    assert records["leaves"]["status"] == "done"
    assert held.begun()
    assert held.ended()


def test_one_that_fails_is_told_and_the_others_run(run, tmp_path):
    broken = tmp_path / "broken.json"
    records = run(
        shell("fails", "echo first; echo 'the reason' >&2; exit 3"),
        shell("dies", "kill -9 $$"),
        shell("writes nothing", "true", output=tmp_path / "absent.json"),
        shell("writes nonsense", f"echo nonsense > {broken}", output=broken),
        shell("works", "true"),
    )
    assert {name: record["status"] for name, record in records.items()} == {
        **dict.fromkeys(("fails", "dies", "writes nothing", "writes nonsense"), "failed"),
        "works": "done",
    }
    assert records["fails"]["reason"] == "status 3: the reason"
    assert records["dies"]["reason"] == "status -9"
    assert records["writes nothing"]["reason"].startswith("its result cannot be read: FileNotFoundError")
    assert records["writes nonsense"]["reason"].startswith("its result cannot be read: JSONDecodeError")


def test_what_is_skipped_says_why(run):
    records = run(
        shell("first", "exit 1"),
        shell("second", "true", after=("first",)),
        shell("third", "true", after=("second", "first")),
        shell("fourth", "true", modules=("json", "no_such_module")),
    )
    records |= run(shell("fifth", "true", seconds=100), shell("last", "true", seconds=1), seconds=20)
    assert {name: (record["status"], record["reason"]) for name, record in records.items()} == {
        "first": ("failed", "status 1"),
        "second": ("skipped", "it builds on what was not done: first"),
        "third": ("skipped", "it builds on what was not done: second"),
        "fourth": ("skipped", "not installed: no_such_module"),
        "fifth": ("skipped", "20 s were left for it, of 100 s planned"),
        "last": ("done", None),
    }


def test_time_is_shared_and_what_is_not_needed_goes_to_the_others(run, monkeypatch):
    clock, limits = [0.0], []
    taken = {"quick": 4.0, "endless": None, "third": 1.0, "fourth": 1.0}

    def child(command, seconds, log, **options):
        spent = taken[command[-1]]
        limits.append(seconds)
        clock[0] += seconds if spent is None else spent
        return Ended(None if spent is None else 0, seconds if spent is None else spent, [])

    monkeypatch.setattr(checks, "run_child", child)
    monkeypatch.setattr(checks.time, "monotonic", lambda: clock[0])
    seconds = {"quick": 40.0, "endless": 20.0, "third": 30.0, "fourth": 10.0}
    records = run(*(shell(name, name, seconds[name]) for name in taken), seconds=100)
    left = 96 - 96 * 20 / 60
    assert limits == pytest.approx([40, 96 * 20 / 60, left * 30 / 40, left - 1])
    assert [record["status"] for record in records.values()] == ["done", "stopped", "done", "done"]


def test_goals_are_judged_on_what_is_shown():
    cases = [
        (Goal(1.05), {1.0: True, 1.05: True, 1.0504: True, 1.051: False, float("nan"): False}),
        (Goal(90, at_least=True), {90.0: True, 89.996: True, 89.9: False, 95.0: True}),
    ]
    for goal, expected in cases:
        assert {value: Figure("", value, "", goal).met for value in expected} == expected
    assert Figure("", 2.0).met is None
    assert Figure("", 1.23456).as_json()["value"] == 1.235
    assert Figure("", float("inf")).as_json()["value"] is None
    assert (str(Goal(1.05)), str(Goal(90, at_least=True))) == ("at most 1.05", "at least 90")


def test_what_must_be_right_fails_a_check_and_what_should_be_fast_does_not(run, tmp_path):
    file = tmp_path / "numbers.json"

    def figures(details):
        return [
            Figure("time", details["time"], "s", Goal(1)),
            Figure("difference", details["difference"], goal=Goal(0, required=True)),
        ]

    def reads(name, time, difference):
        numbers = json.dumps({"time": time, "difference": difference})
        return shell(name, f"echo '{numbers}' > {file}", output=file, figures=figures)

    records = run(reads("fast", 0.5, 0), reads("slow", 2, 0), reads("wrong", 0.5, 0.25))
    assert [record["status"] for record in records.values()] == ["done", "done", "failed"]
    assert [[figure["met"] for figure in record["figures"]] for record in records.values()] == [
        [True, True],
        [False, True],
        [True, False],
    ]
    assert records["wrong"]["reason"] == "difference: 0.25, must be at most 0"
    assert records["slow"]["details"] == {"time": 2, "difference": 0}


def test_the_table_holds_the_numbers_of_the_json_and_what_was_not_done(run, tmp_path):
    file = tmp_path / "numbers.json"
    figures = [
        Figure("ratio", 1.0312345, goal=Goal(1.05)),
        Figure("share", 93.25, "%", Goal(95, at_least=True)),
        Figure("copying", 4312.4, "GB/s"),
        Figure("difference", float("nan"), goal=Goal(0)),
    ]
    records = run(
        shell("measures", f"echo 1 > {file}", output=file, figures=lambda details: figures),
        shell("fails", "exit 1"),
        shell("is skipped", "true", after=("fails",)),
    )
    result = {
        "date": "2026-11-28 12:00 UTC",
        "dry": False,
        "budget": 460.0,
        "seconds": 12.3,
        "machine": {"device": "NVIDIA H100", "torch": "2.11.0", "Triton": None},
        "checks": list(records.values()),
    }
    result = json.loads(json.dumps(result, allow_nan=False))
    text = markdown(result)
    assert text.startswith("2026-11-28 12:00 UTC, device NVIDIA H100, torch 2.11.0; 12 s of 460.\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert cells[2:] == [
        ["measures", "ratio", "1.031", "at most 1.05", "met"],
        ["measures", "share", "93.25 %", "at least 95 %", "**missed**"],
        ["measures", "copying", "4312 GB/s", "", ""],
        ["measures", "difference", "not finite", "at most 0", "**missed**"],
    ]
    shown = [cell[2].split()[0] for cell in cells[2:5]]
    assert [float(number) for number in shown] == [f["value"] for f in result["checks"][0]["figures"][:3]]
    told = text[text.index("Not done:") :].splitlines()[1:]
    assert told == ["* fails: failed: status 1", "* is skipped: skipped: it builds on what was not done: fails"]
    assert markdown({**result, "checks": result["checks"][:1]}).endswith("\nEverything was done.\n")


COMMAND = """
import sys
from pathlib import Path
from benchmarks.check_gpu import __main__ as command
from benchmarks.check_gpu.checks import Check
command.plan = lambda *_: [Check(name, ("sh", "-c", script), 10) for name, script in {checks!r}]
sys.exit(command.main(["--output", sys.argv[1], *sys.argv[2:]]))
"""


def start(folder, several, *options):
    command = [sys.executable, "-c", COMMAND.format(checks=several), str(folder / "out"), *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def written(folder):
    return json.loads((folder / "out" / "check-gpu.json").read_text())


def test_the_command_writes_a_result_and_says_whether_all_went_well(tmp_path):
    for number, expected in ((0, 0), (2, 1)):
        folder = tmp_path / str(number)
        process = start(folder, [("one", f"echo printed; exit {number}"), ("two", "true")], "--dry", "--seconds", "50")
        printed, _ = process.communicate(timeout=HANG)
        assert process.returncode == expected
        assert sorted(path.name for path in (folder / "out").iterdir()) == [
            "check-gpu.json",
            "check-gpu.log",
            "check-gpu.md",
        ]
        assert (folder / "out" / "check-gpu.md").read_text() in printed
        assert "printed" in (folder / "out" / "check-gpu.log").read_text()
        result = written(folder)
        assert (result["dry"], result["budget"]) == (True, 50)
        assert [check["status"] for check in result["checks"]] == ["failed" if number else "done", "done"]


def test_a_kill_loses_nothing_and_leaves_nothing_running(tmp_path):
    held = Held(tmp_path)
    process = start(tmp_path, [("one", "true"), ("endless", held.script), ("three", "true")])
    assert held.begun()
    process.terminate()
    process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGTERM
    assert held.ended()
    assert [check["status"] for check in written(tmp_path)["checks"]] == ["done", "running", "not reached"]


def test_a_kill_while_a_child_starts_leaves_nothing_running(run, monkeypatch, tmp_path):
    """Before the driver has a name for it."""
    held, start_child = Held(tmp_path), subprocess.Popen

    def start_and_kill(*arguments, **options):
        child = start_child(*arguments, **options)
        assert held.begun()
        os.kill(os.getpid(), signal.SIGTERM)
        return child

    monkeypatch.setattr(subprocess, "Popen", start_and_kill)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with pytest.raises(SystemExit):
            run(shell("endless", held.script))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert held.ended()


def planned(sizes):
    return {check.name: check for check in plan(ROOT, Path("/work folder"), sizes)}


def test_what_is_planned_fits_eight_minutes_and_is_tried_without_a_gpu():
    on_gpu, dry = planned(GPU), planned(DRY)
    assert len(on_gpu) == len(plan(ROOT, Path("/"), GPU))  # no name twice
    assert sum(check.seconds for check in on_gpu.values()) <= 480
    known = {"tests/optim/test_genie_triton.py", "tests/training/test_gpu.py", "tests/test_gpu.py"}
    assert known <= {name for name in on_gpu if name.startswith("tests/")}
    assert {name.partition(",")[0] for name in dry} == {name.partition(",")[0] for name in on_gpu} - {
        "a run in bf16"
    }  # which would compile
    for one in (on_gpu, dry):
        reached = set()
        for check in one.values():
            assert set(check.after) <= reached
            reached.add(check.name)


@pytest.mark.parametrize("sizes", [GPU, DRY])
def test_commands_of_shiftproof_are_understood(sizes):
    commands = [check.command[3:] for check in planned(sizes).values() if check.command[2] == "shiftproof"]
    assert len(commands) == len(sizes.steps) + 1 + 2 * len(sizes.runs)
    for command in commands:
        assert make_parser().parse_args(command).device == sizes.device


def rows_of(**changes):
    rows = {
        "AdamW, fused": {"milliseconds": 1.0, "ratio": 1.0, "bandwidth": 0.95},
        "GENIEAdamW, fused": {"milliseconds": 1.02, "ratio": 1.02, "bandwidth": 0.93},
        "GENIE paper, fused": {"milliseconds": 1.04, "ratio": 1.04, "bandwidth": 0.91},
        "GENIE released, fused": {"milliseconds": 1.1, "ratio": 1.1, "bandwidth": 0.85},
    }
    rows |= {f"{name}, graph": row for name, row in rows.items()} | changes
    return {
        "setting": {"copy, GB per second": 4300.0},
        "rows": [{"name": name, **row} for name, row in rows.items()],
    }


def test_what_is_read_of_the_optimizers_steps():
    check = planned(GPU)["a step, 10^8 elements"]
    met = {figure.name: figure.met for figure in check.figures(rows_of()) if figure.goal}
    assert met == {
        f"{ours}, fused{graph}: {what}": ours != "GENIE released"
        for graph in ("", ", graph")
        for ours in ("GENIEAdamW", "GENIE paper", "GENIE released")
        for what in ("of fused AdamW", "of the bandwidth of copying")
    }
    values = {figure.name: (figure.value, figure.unit) for figure in check.figures(rows_of())}
    assert values["copying a tensor"] == (4300, "GB/s")
    assert values["AdamW, fused: of the bandwidth of copying"] == (95, "%")
    with pytest.raises(ValueError, match="GENIE paper, fused, graph: out of memory"):
        check.figures(rows_of(**{"GENIE paper, fused, graph": {"error": "out of memory"}}))
    [dry] = [check for name, check in planned(DRY).items() if name.startswith("a step")]
    assert not any(figure.goal for figure in dry.figures(rows_of()))


def test_what_is_read_of_the_data_path():
    costs = {"data": 0.5, "training": 3.5}
    ours = {
        "images_per_second": 5000.0,
        "speed": 0.94,
        "costs": costs,
        "runs": [{"evaluation": 0.5, "steps": 200, "seconds": 9}, {"evaluation": 0.04, "steps": 5001, "seconds": 210}],
    }
    details = {"ways": {"shiftproof": ours, "usual way": {**ours, "speed": 0.6}}}
    figures = {figure.name: figure for figure in planned(GPU)["the data path"].figures(details)}
    met = {name: figure.met for name, figure in figures.items() if figure.goal}
    assert met == {"speed, of that with data for nothing": False, "evaluation, of such a run": True}
    assert figures["100 steps"].value == 4
    assert figures["evaluation, of such a run"].value == 4
    assert figures["a run of 5001 steps"].value == 210


def test_two_runs_are_compared_in_all_but_their_times(tmp_path):
    both = [check for check in plan(ROOT, tmp_path, GPU) if check.name.startswith("a run in float32")]
    first, second = both
    assert second.after[-1] == first.name
    result = {"weights_sha256": "ab", "metrics": [{"loss": 1.5}], "seconds": {"data": 1.0}}
    first.output.parent.mkdir()
    first.output.write_text(json.dumps(result))
    assert first.figures(result) == []
    [same] = second.figures({**result, "seconds": {"data": 2.0}})
    assert (same.value, same.met, same.goal.required) == (0, True, True)
    [other] = second.figures({**result, "weights_sha256": "cd", "metrics": [{"loss": 1.25}]})
    assert (other.value, other.met) == (2, False)
    assert "(metrics, weights_sha256)" in other.name


def test_failed_and_skipped_tests_fail_a_check_on_a_gpu():
    details = {"passed": ["a", "b"], "failed": ["c"], "skipped": ["d", "e"]}
    for sizes, expected in ((GPU, [None, False, False]), (DRY, [None, False, None])):
        figures = planned(sizes)["tests/test_gpu.py"].figures(details)
        assert [figure.value for figure in figures] == [2, 1, 2]
        assert [figure.met for figure in figures] == expected


# (the mark is put in later, so that this file is not taken for one with tests for a GPU)
TESTS = """
import os, pytest
pytestmark = pytest.{mark}.cuda

def test_passes(): pass
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("so")

@pytest.fixture
def broken(): raise OSError

def test_has_a_broken_fixture(broken): pass
def test_ends_the_process(): os._exit(7)
def test_is_not_reached(): pass
"""


def test_the_outcomes_of_tests_are_there_even_if_their_process_ends(tmp_path):
    (tmp_path / "test_made_up.py").write_text(TESTS.format(mark="mark"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "benchmarks.check_gpu.gpu_tests", "test_made_up.py", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout.rstrip().endswith("test_made_up.py::test_ends_the_process")
    found = json.loads((tmp_path / "found.json").read_text())
    assert {outcome: [name.partition("::test_")[2] for name in names] for outcome, names in found.items()} == {
        "passed": ["passes"],
        "failed": ["fails", "has_a_broken_fixture"],
        "skipped": ["skips"],
    }


def test_pictures_are_as_many_as_asked_for_and_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        make_pictures(tmp_path / name, 21, {"photo": 9, "sketch": 7})
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jpg")}
    assert len(files) == 16
    assert {file.parts[:2] for file in files} == {(domain, name) for domain in ("photo", "sketch") for name in CLASSES}
    contents = {(tmp_path / "a" / file).read_bytes() for file in files}
    assert len(contents) == 16
    assert contents == {(tmp_path / "b" / file).read_bytes() for file in files}
    assert {Image.open(tmp_path / "a" / file).size for file in files} == {(21, 21)}
