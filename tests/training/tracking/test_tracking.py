"""What trackers really wrote, read back with their own readers."""

import shutil
import socket
import sys
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from google.protobuf.message import DecodeError

from processes import wait_until
from shiftproof.protocol.validation import training_domain_validation
from shiftproof.training import train
from shiftproof.training.tracking import TRACKERS, OpenTrackers, TrackedRun, TrackerWarning, Tracking, check_trackers
from shiftproof.training.tracking.tracker import plain_names
from training.killed import Killed
from training.tracking.wandb_file import read_wandb

CPU = torch.device("cpu")
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "sqlalchemy", "wandb": "wandb"}
TAGS = {"study": "short", "method": "erm + adam", "target": "30", "trial": "0", "setting": "0"}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to make one; its tests begin with copies."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = pytest.importorskip("mlflow")
        path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _own_environment(tmp_path, monkeypatch):
    """Nothing of the user's settings, and nothing sent anywhere."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def tracking(request, tmp_path):
    """Return the tracking by one tracker, in an output of its own."""

    def by(name):
        pytest.importorskip(name)
        if name == "mlflow":
            shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "mlflow.db")
        return Tracking((name,), tmp_path, TAGS)

    return by


def _read_tensorboard(output):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "run" / "tensorboard")).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert {len(written) for written in texts.values()} == {1}
    [facts], [tags], [status] = texts["spec"], texts["tags"], texts["status"]
    return curves, facts + tags, status.strip()


def _read_mlflow(output):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("shiftproof").experiment_id])
    curves = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return curves, str(run.data.params | run.data.tags), run.info.status.lower()


def _ended_wandb(path):
    """Read a file, None unless its run has ended: W&B's own process may still write when `finish` has returned."""
    try:
        file = read_wandb(path)
    except (AssertionError, DecodeError, IndexError):  # a header or a record that is written in part
        return None
    return None if file.exit_code is None else file


def _read_wandb(output):
    """Read the newest file, which holds what those of killed processes do."""
    *_, newest = sorted((output / "wandb").glob("offline-run-*/*.wandb"))
    file = wait_until(lambda: _ended_wandb(newest))
    curves = defaultdict(list)
    for _, row in sorted(file.history.items()):
        for name, value in row.items():
            if not name.startswith("_") and name != "step":
                curves[name].append((row["step"], value))
    assert file.run.project == "shiftproof"
    assert file.exit_code == 0
    return curves, str(file.config), file.summary["status"]


READERS = {"tensorboard": _read_tensorboard, "mlflow": _read_mlflow, "wandb": _read_wandb}


def _expected(result):
    curves = defaultdict(list)
    for record in result["metrics"]:
        group = "averaged/" if "averaged" in record else ""
        values = {"loss": record["loss"], "validation": training_domain_validation(record, ("30",))}
        for domain, parts in record["domains"].items():
            values |= {f"accuracy/{domain}/{part}": score["accuracy"] for part, score in parts.items()}
        for name, value in values.items():
            curves[group + name].append((record["step"], pytest.approx(value)))
    return curves


def _kill_at_record(wanted):
    def kill(record):
        if wanted(record):
            raise Killed

    return {"on_record": kill}


def _kill_at_step(wanted):
    def kill(step, loss):
        if step == wanted:
            raise Killed

    return {"on_progress": kill}


@pytest.mark.parametrize("name", ["tensorboard", pytest.param("mlflow", marks=pytest.mark.slow), "wandb"])
def test_the_curve_is_written_once_also_of_a_killed_run_and_changes_no_result(
    name, tracking, digits, make_spec, tmp_path
):
    spec = make_spec(averaging="swad", score_targets=True)
    tracked = tracking(name)
    for killed in (
        _kill_at_record(lambda record: record["step"] == 4),  # the record is written, its checkpoint is not
        _kill_at_step(11),
        _kill_at_record(lambda record: "averaged" in record),
    ):
        with pytest.raises(Killed):
            train(spec, digits, tmp_path / "run", device=CPU, tracking=tracked, **killed)
    result = train(spec, digits, tmp_path / "run", device=CPU, tracking=tracked)
    curves, facts, status = READERS[name](tmp_path)
    assert curves == _expected(result)
    assert [len(curves["loss"]), len(curves["averaged/loss"])] == [3, 1]
    assert status == "finished"
    for fact in ("rotated_digits", spec.data_fingerprint, "optimizer.lr", "short", "erm + adam"):
        assert fact in facts

    untracked = train(spec, digits, tmp_path / "untracked", device=CPU)
    assert (untracked["weights_sha256"], untracked["metrics"]) == (result["weights_sha256"], result["metrics"])


@pytest.mark.slow
def test_mlflow_is_given_what_it_lacks(tracking, digits, make_spec, tmp_path):
    tracked = tracking("mlflow")
    spec = make_spec(score_targets=True)
    with pytest.raises(Killed):
        train(spec, digits, tmp_path / "run", device=CPU, **_kill_at_step(6))  # not tracked so far
    result = train(spec, digits, tmp_path / "run", device=CPU, tracking=tracked)
    again = train(spec, digits, tmp_path / "again", device=CPU, tracking=tracked)  # the same run, elsewhere
    assert again["weights_sha256"] == result["weights_sha256"]
    assert _read_mlflow(tmp_path)[0] == _expected(result)


def test_a_continued_run_is_not_logged_twice_at_a_wandb_server(digits, make_spec, tmp_path, monkeypatch):
    opened = {}
    logged = []
    server = SimpleNamespace(
        starting_step=2,  # rows that the server has
        log=lambda row, step: logged.append((step, row["step"])),
        define_metric=lambda *_, **__: None,
        summary={},
        finish=lambda exit_code: None,
    )

    def init(**settings):
        opened.update(settings)
        return server

    stand_in = SimpleNamespace(init=init, login=lambda prompt: True, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    spec = make_spec(score_targets=True)
    train(spec, digits, tmp_path, device=CPU, tracking=Tracking(("wandb",), tags={"method": 100 * "long"}))
    assert logged == [(2, 12)]
    assert (opened["id"], opened["resume"], opened["mode"]) == (spec.name, "allow", None)
    assert [len(tag) for tag in opened["tags"]] == [64]


def test_a_diverged_run_ends_as_failed(tracking, digits, make_spec, tmp_path):
    result = train(make_spec(lr=1e30), digits, tmp_path / "run", device=CPU, tracking=tracking("wandb"))
    assert result["status"] == "failed"
    [path] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    file = wait_until(lambda: _ended_wandb(path))
    assert (file.summary["status"], file.exit_code) == ("failed", 1)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(digits, make_spec, tmp_path, monkeypatch):
    calls = []

    class Failing:
        def __init__(self, run):
            pass

        def write(self, scalars, step):
            calls.append(step)
            raise OSError("the server is away")

    monkeypatch.setitem(TRACKERS._entries, "wandb", SimpleNamespace(title="W&B", modules=(), open=Failing))
    tracked = Tracking(("wandb", "tensorboard"))
    with pytest.warns(TrackerWarning, match="the run goes on without W&B: OSError: the server is away") as told:
        result = train(make_spec(score_targets=True), digits, tmp_path / "run", device=CPU, tracking=tracked)
    assert (len(told), calls) == (1, [4])
    assert _read_tensorboard(tmp_path)[0] == _expected(result)


def test_an_mlflow_server_that_is_away_ends_no_run(digits, make_spec, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{held.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.warns(TrackerWarning, match="the run goes on without MLflow: MlflowException") as told:
            result = train(make_spec(), digits, tmp_path / "run", device=CPU, tracking=Tracking(("mlflow",)))
    assert (len(told), result["status"]) == (1, "finished")
    assert not (tmp_path / "run" / "mlflow.db").exists()


ODD = (
    "quote's", 'double "quotes"', "a/b", "50%", "été", "写真", "new\nline", "..", ".hidden", "../x", "l" * 255,
    "l" * 254 + "m", "a b", "a_b", "A_b", "", "<script>", "[x]", "*", "a|b", "a:b", "back\\slash", "\udcff", "☃",
    "e\u0301", "m" * 4000,
)  # fmt: skip


def _tracked_run(make_spec, output, names):
    """A run of two evaluations on domains of these names, whose accuracies are all different."""

    def record(step):
        parts = {name: {"out": {"accuracy": (100 * step + i) / 1000}} for i, name in enumerate([*names, "source"])}
        return {"step": step, "loss": 1.0, "domains": parts}

    tags = {**TAGS, "study": "of\nodd 'names'", "target": "+".join(names)}
    return TrackedRun(make_spec(targets=tuple(names)), output / "run", output, tags, (record(2), record(4)))


@pytest.mark.parametrize("name", ["tensorboard", pytest.param("mlflow", marks=pytest.mark.slow), "wandb"])
def test_domains_of_any_name_have_curves_of_their_own(name, tracking, make_spec, tmp_path):
    tracking(name)
    (tmp_path / "run").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrackerWarning)
        opened = OpenTrackers([name], _tracked_run(make_spec, tmp_path, ODD))
        opened.end("finished")
        opened.close()
    curves, facts, status = READERS[name](tmp_path)
    assert status == "finished"
    assert len(curves) == len(ODD) + 3  # loss, validation and the source
    written = [[value for _, value in curve] for key, curve in curves.items() if key.startswith("accuracy/")]
    assert sorted(written) == [pytest.approx([0.2 + i / 1000, 0.4 + i / 1000]) for i in range(len(ODD) + 1)]
    for fact in ("quote", "写真" if name != "tensorboard" else r"\u5199\u771f", "udcff"):
        assert fact in facts


def test_a_domain_is_called_as_readably_as_trackers_allow():
    names = plain_names([*ODD, "Real World", "sketch"])
    assert (names["Real World"], names["sketch"], names[".hidden"], names["写真"]) == (
        "Real World",
        "sketch",
        ".hidden",
        "写真",
    )
    assert (names["quote's"], names["50%"], names["new\nline"], names["../x"]) == ("quote_s", "50_", "new_line", ".._x")
    assert names["a b"].startswith("a b-")  # which TensorBoard would write as a_b
    assert names["a_b"].startswith("a_b-")
    assert len({name.replace(" ", "_").casefold() for name in names.values()}) == len(names)
    assert max(map(len, names.values())) <= 109
    assert plain_names(reversed(list(names))) == names


def test_mlflow_takes_every_name(make_spec, tmp_path):
    validation = pytest.importorskip("mlflow.utils.validation")
    run = _tracked_run(make_spec, tmp_path, ODD)
    for name in run.scalars({**run.kept[0], "averaged": [2, 2]}):
        validation._validate_metric(name, 0.5, 0, 0)
    assert len(run.title) == 128
    assert run.title.startswith("erm + adam on quote's+")
    assert run.title.endswith(", trial 0, setting 0")


def test_a_run_is_called_as_tables_call_it(make_spec, tmp_path):
    run = TrackedRun(make_spec(variant="2x"), tmp_path, tmp_path, {}, ())
    assert run.title == run.spec.label()
    assert run.title.startswith("erm + adam, 2x on ")


def test_nothing_is_tracked_unless_asked_for(digits, make_spec, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make_spec(steps=1), digits, tmp_path, device=CPU)
    assert not {"tensorboard", "mlflow.db", "wandb"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_told_with_its_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ValueError, match=rf"is not installed: pip install 'shiftproof\[{name}\]'"):
        check_trackers([name])


def test_an_unknown_tracker_is_told_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown tracker 'mlfow'\. Did you mean mlflow.* tensorboard, mlflow, wandb"):
        check_trackers(["mlfow"])
