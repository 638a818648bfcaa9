"""Errors name the line or the option of what is at fault, wherever they arise."""

import pickle

import pytest

from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import DatasetNotFoundError


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (  # nothing that is fixed is to blame
            "trials: 1\nalgorithms: [erm, mldg]\noptimizers: [adam]\nsteps: 6\nsingle_source: true\n\n"
            "fixed: {optimizer.weight_decay: 0.1}",
            2,
            "mldg needs at least 2 source domains, not 1",
        ),
        (
            "trials: 1\nalgorithms: [erm, mldg]\noptimizers: [adam]\nsingle_source: true",
            2,
            "mldg needs at least 2 source domains, not 1",
        ),
        ("targets: [15]\nfixed:\n  optimizer.weight_decay: 0.1\n  optimizer.lr: -1", 4, "Invalid learning rate: -1"),
        ("targets: [15]\nfixed:\n  optimizer.lr: -1\n  optimizer.weight_decay: 0.1", 3, "Invalid learning rate: -1"),
        ("optimizers: [adam]\nfixed:\n  optimizer.lr: -1\n  optimizer.weight_decay: -1", 3, "Invalid learning rate"),
        ("optimizers: [adam, sgd]\nfixed:\n  optimizer.lr: 1\n  adam.lr: -1", 4, "Invalid learning rate: -1"),
        ("optimizers: [sgd]\nfixed:\n  sgd.lr: 1\n  adam.lr: 1", 4, "no method of the study has adam.lr"),
        (
            "fixed: {optimizer.weight_decay: 0.1}\nvariants:\n- {name: a, fixed: {optimizer.lr: -1}}",
            2,
            "Invalid learning rate: -1",
        ),
        (
            "trials: 1\nannealers: [gga]\nfixed:\n  annealer.radius: 0.1\n  annealer.end: 400",
            5,
            "GGA searches at steps 100 to 400, and the run has 300",
        ),
        ("annealers: [gga]\ntrials: 1\nsteps: 50\nfixed:\n  annealer.radius: 0.1", 1, "GGA searches at steps"),
        ("algorithms: [irm]\nfixed:\n  optimizer.lr: 1\n  data.batch_size: 1", 4, "irm needs batches"),
        ("algorithms: [irm]\nvariants:\n- {name: a, fixed: {data.batch_size: 1}}", 2, "irm needs batches of at least"),
        ("steps: 9\nfixed: {data.batch_size: 0}", 2, "data.batch_size must be a whole number above 0, not 0"),
        ("trials: 1\naccumulate: 3", 2, "a batch of 16 cannot be split into 3 equal parts"),
        ("trials: 1\naccumulate: 3\nfixed: {data.batch_size: 7}", 2, "a batch of 7 cannot be split into 3"),
        ("optimizers: [adahessian]\ncompile: true", 2, "adahessian differentiates the gradient, which torch.compile"),
        ("steps: 9\nfixed: {model.dropout: 1}", 2, "Invalid dropout value: 1"),
        ("trials: 1\nmodel: squeezenet1_1", 2, "model 'squeezenet1_1' takes images of 3 channels, not 1"),
        ("trials: 1\nimage_size: 8", 2, "rotated_digits has images of 16 x 16 pixels; image size 8 is not available"),
        ("datasets: [colored_digits]\ndata_dir: /data", 2, "colored_digits is embedded: it takes no data folder"),
        ("trials: 1\ndata_dir: /nowhere\ndatasets: [folder]\nkind: small_images", 2, "/nowhere: no such folder"),
        ("datasets: [folder]\ndata_dir: ''", 2, "data_dir must be a path, not ''"),
        ("trials: 1\nweights: none.pt", 2, "there is no weights file none.pt"),
        ("trials: 1\nprotocol: swad\nsteps: 50", 3, "the protocol swad would evaluate only step 1 of 50 steps"),
    ],
)
def test_the_line_of_a_file(text, line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(text)
    assert main(["study", "plan", "study.yaml"]) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: study.yaml, line {line}: {message}")


@pytest.mark.parametrize(
    ("text", "options", "place", "message"),
    [
        (
            "algorithms: [erm, mldg]\nsingle_source: true",
            "--batch-size 4",
            "study.yaml, line 1",
            "mldg needs at least 2 source domains, not 1",
        ),
        ("algorithms: [irm]", "--batch-size 1", "--batch-size", "irm needs batches of at least 2 images per domain"),
        ("algorithms: [irm]", "--set data.batch_size=1", "--set", "irm needs batches of at least 2 images per domain"),
        ("trials: 1\naccumulate: 3", "--batch-size 4", "study.yaml, line 2", "a batch of 4 cannot be split into 3"),
        ("accumulate: 2", "--accumulate 3", "--accumulate", "a batch of 16 cannot be split into 3 equal parts"),
        ("fixed: {optimizer.lr: 1}", "--set optimizer.lr=-1", "--set", "Invalid learning rate: -1"),
        ("fixed: {optimizer.lr: -1}", "--batch-size 4", "study.yaml, line 1", "Invalid learning rate: -1"),
        ("trials: 2", "--hparam-trials 0", "--hparam-trials", "hparam_trials must be a whole number above 0"),
        ("trials: 2", "--optimizers adm", "--optimizers", "unknown optimizer 'adm'. Did you mean adam"),
    ],
)
def test_the_option_of_a_command(text, options, place, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(text)
    assert main(["study", "plan", "study.yaml", *options.split()]) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: {place}: {message}")


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("train --target 0 --optimizer adam --set optimizer.lr=-1 --output out", "--set", "Invalid learning rate: -1"),
        ("train --target 0 --accumulate 3 --output out", "--accumulate", "a batch of 16 cannot be split into 3"),
        (
            "train --target 0 --algorithm irm --batch-size 1 --output out",
            "--batch-size",
            "irm needs batches of at least 2",
        ),
        ("train --target 31 --output out", "--target", "unknown domain of rotated_digits '31'"),
        ("train --target 0 --optimizer adm --output out", "--optimizer", "unknown optimizer 'adm'"),
        ("compare --dataset rotated_digit", "--dataset", "unknown data set 'rotated_digit'"),
        (
            "compare --dataset rotated_digits --protocol swad --checkpoint-freq 300 --steps 50",
            "--checkpoint-freq",
            "the protocol swad would",
        ),
        (
            "compare --dataset rotated_digits --protocol swad --steps 50",
            "--steps",
            "the protocol swad would evaluate only step 1 of 50 steps",
        ),
        ("compare --clip-norm 0", "--clip-norm", "clip_norm must be a number above 0, not 0"),
        ("figure osgr --model small_con", "--model", "unknown model 'small_con'"),
        ("bench data --target 0 --data-dir . --model small_con", "--model", "unknown model 'small_con'"),
    ],
)
def test_every_command_names_its_option(command, option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 1
    assert capsys.readouterr().err.startswith(f"shiftproof: error: {option}: {message}")


def test_an_error_that_names_the_path_of_its_option_does_not_name_the_option_too(capsys):
    assert main(["bench", "data", "--target", "0", "--data-dir", "/nowhere"]) == 1
    assert capsys.readouterr().err.startswith("shiftproof: error: /nowhere: no such folder")


def test_no_option_is_named_that_was_not_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--dataset", "folder"]) == 1
    assert not capsys.readouterr().err.startswith("shiftproof: error: --")


def test_a_home_that_is_not_known_is_a_folder_that_is_not_there(capsys):
    command = ["compare", "--dataset", "folder", "--data-dir", "~nobody-of-this-name/x", "--kind", "small_images"]
    assert main(command) == 1
    assert "~nobody-of-this-name: no such folder" in capsys.readouterr().err


def test_an_error_comes_back_from_a_worker_process():
    for error in (FieldError(("steps", "protocol"), "too few"), DatasetNotFoundError("it is away")):
        back = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
        assert (type(back), back.fields, str(back)) == (type(error), error.fields, str(error))
