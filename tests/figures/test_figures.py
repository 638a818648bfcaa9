"""The figures: what they train is what a run trains, and what is drawn is what was measured."""

from __future__ import annotations

import csv
import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from shiftproof import figures
from shiftproof.base.drawing import OPTIMIZER_COLORS
from shiftproof.base.files import DamagedFileError
from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import main
from shiftproof.data import TableFile, Task, open_table
from shiftproof.diagnostics import StepContributions, simulate, step_ratios
from shiftproof.diagnostics import features as features_module
from shiftproof.diagnostics.features import Embedding, Projection
from shiftproof.figures import (
    diagnose,
    figure_balance,
    figure_embedding,
    figure_landscape,
    figure_osgr,
    figure_sensitivity,
    measure_agreement,
    write_agreement,
)
from shiftproof.figures import diagnosis as diagnosis_module
from shiftproof.figures import embedding as embedding_figure
from shiftproof.figures import flatness as flatness_figure
from shiftproof.figures import landscape as landscape_figure
from shiftproof.figures import osgr as osgr_figure
from shiftproof.figures import sensitivity as sensitivity_figure
from shiftproof.figures import traces as traces_module
from shiftproof.figures.flatness import held_out
from shiftproof.figures.osgr import draw_osgr
from shiftproof.figures.sensitivity import Sensitivity, draw_sensitivity
from shiftproof.figures.traces import Subject, Trace, figure_subjects, trace
from shiftproof.report.diagnostics import diagnostic_figures
from shiftproof.studies import Study, read_run_spec, study_data, train_one
from shiftproof.studies.planning import plan_run
from shiftproof.training import load, read_result
from shiftproof.training.callbacks import checkpoints as checkpoints_module
from shiftproof.training.inputs import Inputs
from shiftproof.training.result import state_digest

STUDY = Study(optimizers=("genie",), targets=("0",), trials=1, steps=6, fixed={"data.batch_size": 4})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images, points and simulated runs than a figure needs, and the fast projection."""
    monkeypatch.setattr(diagnosis_module, "best_projection", lambda: "pca")
    monkeypatch.setattr(flatness_figure, "IMAGES", 2)
    monkeypatch.setattr(flatness_figure, "RADII", (0.05,))
    monkeypatch.setattr(landscape_figure, "POINTS", 3)
    monkeypatch.setattr(landscape_figure, "simulate", partial(simulate, steps=5, runs=3, tuning_runs=1))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _svg_texts(path: Path) -> list[str]:
    """Return the texts of a picture in their order."""
    elements = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314  (our own)
    return ["".join(element.itertext()) for element in elements]


def _traced_as_trained(study: Study, folder: Path) -> tuple[Subject, Trace]:
    """Train and trace a run, which must reach the same weights."""
    train_one(study, folder / "run", 0, 0)
    [subject] = figure_subjects(study, 0)
    found = trace(subject, folder / "traces")
    result = read_result(folder / "run")
    assert result is not None
    assert state_digest(found.state) == result["weights_sha256"]
    return subject, found


def test_a_trace_takes_the_steps_of_the_run(tmp_path: Path) -> None:
    study = replace(STUDY, optimizers=("sam",))
    subject, found = _traced_as_trained(study, tmp_path)
    assert found.path_steps == [0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(found.path[0], traces_module.flat_weights(subject.algorithm()))
    assert torch.equal(found.path[-1], traces_module.flat_weights(subject.algorithm(found.state)))


def test_a_trace_that_was_killed_continues_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [subject] = figure_subjects(STUDY, 0)
    whole = trace(subject, tmp_path / "whole")
    monkeypatch.setattr(checkpoints_module, "CHECKPOINT_SECONDS", 0.0)
    unseen = Inputs.unseen_batch

    def killed(self: Inputs, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return unseen(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Inputs, "unseen_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            trace(subject, tmp_path / "broken")
    continued = trace(subject, tmp_path / "broken")
    assert continued.records == whole.records
    assert continued.contributions == whole.contributions
    assert torch.equal(continued.path, whole.path)
    assert state_digest(continued.state) == state_digest(whole.state)
    assert [path.suffix for path in (tmp_path / "broken").iterdir()] == [".pt"]  # the checkpoint is gone


def test_a_trace_follows_an_optimizer_that_starts_anew(tmp_path: Path) -> None:
    study = replace(STUDY, algorithms=("vrex",), fixed=STUDY.fixed | {"algorithm.anneal_steps": 3})
    _, found = _traced_as_trained(study, tmp_path)
    assert [record["step"] for record in found.records] == [1, 2, 3, 5, 6]  # at 4 there is another optimizer


def test_osgr_and_balance_are_drawn_of_one_training(tmp_path: Path) -> None:
    study = replace(STUDY, optimizers=("sgd", "genie"))
    files = figure_osgr(study, tmp_path)
    traces = {path: path.stat().st_mtime_ns for path in (tmp_path / "traces").iterdir()}
    files += figure_balance(study, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "traces").iterdir()} == traces
    assert {path.name for path in files} == {
        f"{name}.{suffix}"
        for name in ("osgr", "osgr_moments", "balance", "balance_numbers")
        for suffix in ("csv", "svg", "png", "txt")
    }
    for path in files:
        if path.suffix == ".svg":
            ElementTree.parse(path)  # noqa: S314  (our own)
    [subject, _] = figure_subjects(study, 0)
    found = trace(subject, tmp_path / "traces")
    [row] = [
        row
        for row in _rows(tmp_path / "diagnostics" / "osgr.csv")
        if (row["optimizer"], row["ratio"], row["step"]) == ("sgd", "transfer", "all")
    ]
    assert float(row["value"]) == step_ratios(found.contributions)["transfer"].value
    moments = _rows(tmp_path / "diagnostics" / "osgr_moments.csv")
    assert {(row["path"], row["quantity"]) for row in moments} >= {
        (path, name) for path in ("sgd", "genie") for name in ("sgd", "adam", "uniform", "genie", "genie_step")
    }
    assert {row["step"] for row in moments} == set("02346")  # five of the seven snapshots, from the first to the last
    balance = [row for row in _rows(tmp_path / "diagnostics" / "balance.csv") if row["optimizer"] == "sgd"]
    assert [float(row["gini"]) for row in balance] == [record["balance/gini"] for record in found.records]


def test_an_interval_without_bounds_ends_in_arrows_and_is_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(osgr_figure, "RATIO_SPAN", 5)
    monkeypatch.setattr(osgr_figure, "write_figure", lambda figure, *rest: drawn.append(figure))
    sure = [(2.0 + 0.1 * i, 1.0 + 0.1 * i, None, None, None, None) for i in range(5)]
    unsure = [((-1.0) ** i + 0.1, 0.5, None, None, None, None) for i in range(5)]
    records = [{"step": i} for i in range(1, 11)]
    recorder = {"records": records, "contributions": [*sure, *unsure]}
    draw_osgr({"sgd": Trace(recorder, torch.zeros(1, 1), [0], [{}], {})}, tmp_path, "nothing")
    [axes, *_] = drawn[0].axes
    assert not axes.collections  # nothing is filled
    bars = {
        line.get_xdata()[0]: line.get_ydata().tolist()
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    }
    ends = {
        (x, y): line.get_marker() for line in axes.lines for x, y in line.get_xydata() if len(line.get_xdata()) == 1
    }
    bottom, top = axes.get_ylim()
    assert (ends[10, bottom], ends[10, top]) == ("v", "^")
    sure_ratio = step_ratios([StepContributions(*one) for one in sure])["osgr"]
    assert bottom < sure_ratio.low < sure_ratio.high < top
    assert bars[5] == pytest.approx([sure_ratio.low, sure_ratio.high])
    assert (ends[5, sure_ratio.low], ends[5, sure_ratio.high]) == ("_", "_")


def test_features_are_drawn_before_and_after(tmp_path: Path) -> None:
    files = figure_embedding(replace(STUDY, optimizers=("adam",)), tmp_path, method="pca")
    assert {path.stem for path in files} == {"embedding", "separation"}
    rows = _rows(tmp_path / "diagnostics" / "separation.csv")
    assert [(row["training"], row["groups"]) for row in rows] == [
        (when, groups) for when in ("before", "after") for groups in ("classes", "domains")
    ]
    assert all(0 <= float(row["probe"]) <= 1 for row in rows)
    with pytest.raises(ValueError, match="method"):
        figure_embedding(STUDY, tmp_path, method="tsne")  # type: ignore[arg-type]


def test_the_features_of_all_optimizers_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    projected: list[str] = []

    def embed(features: Tensor, labels: Tensor, domains: Tensor, method: Projection) -> Embedding:
        projected.append(method)
        return features_module.embed(features, labels, domains, "pca")

    monkeypatch.setattr(embedding_figure, "embed", embed)
    monkeypatch.setattr(features_module, "find_spec", lambda name: object())
    study = replace(STUDY, optimizers=("sgd", "adam", "genie"))
    files = figure_embedding(study, tmp_path)
    texts = _svg_texts(next(path for path in files if path.name == "embedding.svg"))
    assert texts.index("before training") < texts.index("sgd") < texts.index("adam") < texts.index("genie")
    assert "Features of held-out images, projected by UMAP" in texts
    rows = _rows(tmp_path / "diagnostics" / "embedding.csv")
    assert list(dict.fromkeys(row["training"] for row in rows)) == ["before", "sgd", "adam", "genie"]
    monkeypatch.setattr(features_module, "find_spec", lambda name: None)
    figure_embedding(study, tmp_path)
    assert projected == ["umap"] * 6 + ["pca"] * 6


def test_the_landscape_is_drawn_with_the_paths_of_real_runs(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--steps", "6", "--set", "data.batch_size=4", "--optimizers", "sgd", "genie", "--target", "0"]
    assert main(["figure", "landscape", *arguments, "--output", str(tmp_path)]) == 0
    assert "landscape.svg" in capsys.readouterr().out
    names = {path.stem for path in (tmp_path / "diagnostics").iterdir()}
    assert names == {"landscape", "path_sources", "path_target", "flatness"}
    rows = _rows(tmp_path / "diagnostics" / "path_target.csv")
    assert [row["step"] for row in rows if row["what"] == "sgd"] == list("0123456")
    assert len([row for row in rows if row["what"] == "plane"]) == 9


def test_an_optimizer_without_a_hyperparameter_is_a_level_line_in_its_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(sensitivity_figure, "write_figure", lambda figure, *rest: drawn.append(figure))
    measured = [
        Sensitivity("adam", "lr", 0.01 * factor, factor, 0, unseen, 0.9) for factor, unseen in ((0.1, 0.3), (1.0, 0.6))
    ]
    measured += [Sensitivity("genie", "lr", 10.0, 1.0, 0, 0.5, 0.8)]
    measured += [Sensitivity("genie", "dropout", value, value, 0, 0.4 + value / 2, 0.7) for value in (0.1, 0.4, 0.8)]
    draw_sensitivity(measured, tmp_path, "nothing")
    [rates, dropout] = drawn[0].axes
    lines = [container.lines[0] for container in dropout.containers]
    assert [line.get_xydata().tolist() for line in lines] == [
        [[0.1, 60], [0.4, 60], [0.8, 60]],
        [[0.1, 90], [0.4, 90], [0.8, 90]],
        [[0.1, pytest.approx(45)], [0.4, pytest.approx(60)], [0.8, pytest.approx(80)]],
        [[0.1, pytest.approx(70)], [0.4, pytest.approx(70)], [0.8, pytest.approx(70)]],
    ]
    assert [line.get_color() for line in lines] == [OPTIMIZER_COLORS[name] for name in ("adam",) * 2 + ("genie",) * 2]
    assert [line.get_marker() for line in lines] == ["", "", "o", "o"]
    [box] = drawn[0].legends
    names = [text.get_text() for text in box.get_texts()]
    assert sorted(names) == ["adam", "genie", "held-out images of the sources", "unseen domain"]
    legend = dict(zip(names, box.legend_handles, strict=True))
    assert legend["unseen domain"].get_linestyle() == "-"
    assert legend["held-out images of the sources"].get_linestyle() == ":"
    assert len(rates.containers) == 4


def test_the_default_optimizers_have_the_hyperparameters_that_are_varied() -> None:
    varied = {
        optimizer: [name for name, *_ in sensitivity_figure._values(Study(), optimizer)]
        for optimizer in Study().optimizers
    }
    assert varied["genie"] == ["lr"] * 5 + ["dropout"] * 4 + ["beta"] * 4
    assert varied["genie_adamw"] == ["lr"] * 5 + ["dropout"] * 4
    assert varied["adam"] == ["lr"] * 5


def test_every_figure_has_a_title_and_colours_its_optimizers_alike(tmp_path: Path, small: None) -> None:
    study = replace(STUDY, optimizers=("genie", "sgd"))
    files = [
        *figure_osgr(study, tmp_path),
        *figure_balance(study, tmp_path),
        *figure_embedding(study, tmp_path, method="pca"),
        *figure_landscape(study, tmp_path),
        *write_agreement(measure_agreement(study), tmp_path),
    ]
    texts = {path.stem: _svg_texts(path) for path in files if path.suffix == ".svg"}
    titles = {
        "osgr": "One-step generalization ratio of real steps",
        "osgr_moments": "One-step generalization ratio that the gradients' moments predict",
        "balance": "Magnitude of the update of every parameter over training",
        "balance_numbers": "Balance of the updates over training",
        "embedding": "Features of held-out images, projected by PCA",
        "separation": "How well features separate classes and domains",
        "landscape": "Where optimizers end on the simulated landscape",
        "path_sources": "Paths and the loss of the sources",
        "path_target": "Paths and the loss of the unseen domain",
        "flatness": "Loss around the weights at the end of training",
        "agreement": "Agreement of the domains' gradients over training",
    }
    assert {name: found for name, found in titles.items() if found not in texts[name]} == {}
    assert set(texts) == set(titles)
    for name in ("osgr", "balance_numbers", "landscape", "path_sources", "flatness", "agreement"):
        svg = next(path for path in files if path.name == f"{name}.svg").read_text().lower()
        assert all(OPTIMIZER_COLORS[optimizer].lower() in svg for optimizer in ("genie", "sgd")), name
    assert {"featurizer.0.weight", "classifier.weight"} <= set(texts["balance"])


def test_sensitivity_trains_every_value_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity_figure, "LR_FACTORS", (0.1, 1.0))
    monkeypatch.setattr(sensitivity_figure, "GENIE_VALUES", {"dropout": (0.1, 0.8)})
    study = replace(STUDY, optimizers=("sgd", "genie"), steps=2, targets=None)
    files = figure_sensitivity(study, tmp_path)
    rows = _rows(tmp_path / "diagnostics" / "sensitivity.csv")
    assert [(row["optimizer"], row["hyperparameter"], float(row["value"])) for row in rows] == [
        ("sgd", "lr", pytest.approx(0.01)),
        ("sgd", "lr", pytest.approx(0.1)),
        ("genie", "lr", pytest.approx(1.0)),
        ("genie", "lr", pytest.approx(10.0)),
        ("genie", "dropout", 0.1),
        ("genie", "dropout", 0.8),
    ]
    runs = [json.loads(line) for line in (tmp_path / "sensitivity" / "sgd" / "runs.jsonl").read_text().splitlines()]
    assert float(rows[1]["unseen"]) == runs[1]["selection"]["training_domain"]["accuracy"]
    assert len(files) == 4


def test_the_means_of_the_runs_that_finished_are_drawn_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(sensitivity_figure, "write_figure", lambda figure, *rest: drawn.append(figure))
    scores = [(10.0, 0, 0.5, 0.4), (0.1, 0, 0.6, 0.9), (10.0, 1, 0.7, 0.8), (0.1, 1, None, None)]
    measured = [Sensitivity("sgd", "lr", 0.1 * x, x, trial, *accuracies) for x, trial, *accuracies in scores]
    draw_sensitivity(measured, tmp_path, "nothing")
    [axes] = drawn[0].axes
    means = [container.lines[0].get_xydata().flatten().tolist() for container in axes.containers]
    assert means == [pytest.approx([0.1, 60, 10, 60]), pytest.approx([0.1, 90, 10, 60])]
    bars = [container.lines[2][0].get_segments()[1][:, 1] for container in axes.containers]
    assert [high - low for low, high in bars] == pytest.approx([20, 40])  # a standard error to each side


def test_a_finished_run_is_diagnosed_and_its_report_shows_it(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    common = ["--steps", "4", "--set", "data.batch_size=4"]
    store = ["--targets", "0", "--optimizers", "adam", "--trials", "1", "--jobs", "1"]
    assert main(["compare", "--dataset", "rotated_digits", *common, *store, "--output", str(tmp_path)]) == 0
    [run] = (tmp_path / "runs").iterdir()
    assert main(["diagnose", str(run)]) == 0
    drawn = {path.stem for path in (run / "diagnostics").glob("*.svg")}
    assert drawn == {
        *("osgr", "osgr_moments", "balance", "balance_numbers", "flatness"),
        *("path_sources", "path_target", "embedding"),
    }
    assert not [str(w.message) for w in recwarn if "did not reach" in str(w.message)]
    assert main(["study", "report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('<figure class="diagnostic">') == len(drawn)
    assert "erm + adam on rotated_digits, 0, trial 0, setting 0" in page


@pytest.mark.parametrize(
    ("task", "labels"),
    [("classification", ("kind",)), ("multilabel", ("ill", "old")), ("regression", ("dose",))],
)
def test_a_run_of_a_table_is_diagnosed_with_the_loss_of_its_task(
    task: Task,
    labels: tuple[str, ...],
    tmp_path: Path,
    small: None,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    pytest.importorskip("pyarrow")
    lines = [f"{'abc'[i % 3]},{i * 37 % 101},{i * 53 % 97},{'xy'[i // 3 % 2]},{i % 2},{i % 5 // 4}" for i in range(90)]
    (tmp_path / "visits.csv").write_text("\n".join(["site,dose,size,kind,ill,old", *lines]))
    described = ["--metadata", str(tmp_path / "visits.csv"), "--domain", "site", "--label", *labels]
    described += ["--task", task, "--features", "size"]
    common = ["--target", "c", "--optimizer", "adam", "--steps", "4", "--set", "data.batch_size=4"]
    run = tmp_path / "run"
    assert main(["train", "--dataset", "table", *described, *common, "--output", str(run)]) == 0
    assert main(["diagnose", str(run), *described]) == (0 if task == "classification" else 1)
    if task != "classification":
        message = f"embedding shows classes, and the task of visits is {task}: leave it out"
        assert message in capsys.readouterr().err
        assert not (run / "diagnostics").exists()
        chosen = ["--what", "osgr", "balance", "sharpness", "landscape"]
        assert main(["diagnose", str(run), *described, *chosen]) == 0
    assert not [str(w.message) for w in recwarn if "did not reach" in str(w.message)]
    dataset = open_table(TableFile(tmp_path / "visits.csv", "site", labels, task, ("size",)))
    subject = Subject(read_run_spec(run, ""), dataset, torch.device("cpu"), None)
    network = load(run).network
    expected = [network.loss(network(inputs), targets).item() for inputs, targets in held_out(subject)["sources"]]
    losses = [row for row in _rows(run / "diagnostics" / "flatness.csv") if row["quantity"] == "loss"]
    assert float(losses[0]["value"]) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert ", 1 columns, 4 steps of 4 rows per source domain" in (run / "diagnostics" / "osgr.txt").read_text()


def test_a_run_of_a_table_needs_the_table_that_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    lines = [f"{'ab'[i % 2]},{i},{'xy'[i // 2 % 2]}" for i in range(40)]
    file = tmp_path / "visits.csv"
    file.write_text("\n".join(["site,dose,kind", *lines]))
    described = ["--metadata", str(file), "--domain", "site", "--label", "kind"]
    run = str(tmp_path / "run")
    assert main(["train", "--dataset", "table", *described, "--target", "b", "--steps", "2", "--output", run]) == 0
    for given, message in (
        ([], f"{run} was trained on the table visits: name its file and columns as in training, by --metadata, --dom"),
        (described[:4], "the data set table needs labels, the column to predict: --label"),
        ([*described[:3], "sit", *described[4:]], f"{file}: unknown column 'sit'. Did you mean site?"),
    ):
        assert main(["diagnose", run, "--what", "sharpness", *given]) == 1
        assert message in capsys.readouterr().err
    file.write_text("\n".join(["site,dose,kind", *lines[1:], "a,7,y"]))
    study_data.open_dataset.cache_clear()
    assert main(["diagnose", run, "--what", "sharpness", *described]) == 1
    assert "are not those that the run was planned with" in capsys.readouterr().err


def test_the_report_shows_the_runs_of_all_settings(tmp_path: Path) -> None:
    other = replace(STUDY, datasets=("colored_digits",), targets=("plus90",))
    specs = [plan_run(STUDY, 0, 0), plan_run(STUDY, 0, 3), plan_run(other, 0, 0)]
    for spec in specs:
        folder = tmp_path / "runs" / spec.name / "diagnostics"
        folder.mkdir(parents=True)
        (folder / "osgr.svg").write_text("<svg/>")
        (folder / "osgr.txt").write_text("seen")
    results: Any = SimpleNamespace(plan=SimpleNamespace(distinct=specs))
    assert [figure.of for figure in diagnostic_figures(results, tmp_path)] == [
        "erm + genie on rotated_digits, 0, trial 0, setting 0",
        "erm + genie on rotated_digits, 0, trial 0, setting 3",
        "erm + genie on colored_digits, plus90, trial 0, setting 0",
    ]


def test_what_cannot_be_diagnosed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"sharpnes.*sharpness"):
        diagnose(tmp_path, ["sharpnes"])
    with pytest.raises(FileNotFoundError, match=r"no spec\.json"):
        diagnose(tmp_path, ["osgr"])
    [subject] = figure_subjects(STUDY, 0)
    (tmp_path / f"{subject.spec.name}.pt").write_bytes(b"half")
    with pytest.raises(DamagedFileError, match="delete it"):
        trace(subject, tmp_path)


def test_what_takes_a_trial_takes_the_first_if_none_is_given() -> None:
    parameters = {
        name: inspect.signature(getattr(figures, name)).parameters for name in figures.__all__ if name[0].islower()
    }
    defaults = {name: of["trial_seed"].default for name, of in parameters.items() if "trial_seed" in of}
    assert defaults == dict.fromkeys(
        ("figure_balance", "figure_embedding", "figure_landscape", "figure_osgr", "measure_agreement"), 0
    )


def test_one_data_set_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["figure", "osgr", "--dataset", "rotated_digits", "colored_digits", "--output", str(tmp_path)])
    assert "unrecognized arguments: colored_digits" in capsys.readouterr().err
