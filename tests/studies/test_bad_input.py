"""Bad input gets a clear error before anything is trained."""

import os

import pytest

from shiftproof.cli import main
from shiftproof.cli.fields import assignment
from shiftproof.data import DATASETS, DomainDataset
from shiftproof.data.dataset import DatasetEntry
from shiftproof.studies import Study, make_plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizers adm", "unknown optimizer 'adm'. Did you mean adam"),
        ("--algorithms erma", "unknown algorithm 'erma'. Did you mean erm"),
        ("--dataset rotated_digit", "unknown data set 'rotated_digit'. Did you mean rotated_digits"),
        ("--model small_con", "unknown model 'small_con'. Did you mean small_conv"),
        ("--search long", "unknown search 'long'"),
        ("--protocol swat", "unknown protocol 'swat'. Did you mean swad"),
        ("--averaging swa", "unknown averaging 'swa'. Did you mean swad"),
        ("--precision fp16", "unknown precision 'fp16'"),
        ("--tune all", "unknown tune 'all'"),
        ("--selection best", "unknown selection rule 'best'"),
        ("--baseline sgd", "unknown baseline 'sgd'. Did you mean erm + sgd"),
        ("--single-source --targets 0", "targets contradict single_source"),
        ("--single-source --selection leave_one_domain_out", "leave_one_domain_out contradicts single_source"),
        ("--selection leave_one_domain_out --targets 0+15", "is defined for targets of one domain"),
        ("--targets 31", "unknown domain of rotated_digits '31'. Did you mean 30"),
        ("--targets 30 30", "target 30 is named twice"),
        ("--optimizers sgd sgd", "optimizer sgd is named twice"),
        ("--targets 0+15+30+45+60+75", "leaves no source domain to train on"),
        ("--steps 0", "steps must be a whole number above 0, not 0"),
        ("--trials 0", "trials must be a whole number above 0, not 0"),
        ("--hparam-trials 0", "hparam_trials must be a whole number above 0, not 0"),
        ("--batch-size 0", "data.batch_size must be a whole number above 0, not 0"),
        ("--checkpoint-freq 0", "checkpoint_freq must be a whole number above 0, not 0"),
        ("--jobs 0", "jobs must be a whole number above 0, not 0"),
        ("--clip-norm 0", "clip_norm must be a number above 0, not 0.0"),
        ("--accumulate 3", "a batch of 16 cannot be split into 3 equal parts"),
        ("--set optimizer.lr=-1", "Invalid learning rate: -1"),
        ("--set optimizer.lr=x", "optimizer.lr must be a number, not 'x'"),
        ("--set optimizer.lr=inf", "optimizer.lr must be a finite number, not inf"),
        ("--set optimizer.lr=1e999", "optimizer.lr must be a finite number, not inf"),
        ("--set optimizer.lr=-Infinity", "optimizer.lr must be a finite number, not -inf"),
        ("--set optimizer.lr=nan", "optimizer.lr must be a finite number, not nan"),
        (f"--set optimizer.lr={'9' * 400}", "optimizer.lr must be a finite number, not 999"),
        (f"--set optimizer.lr={'9' * 5000}", "optimizer.lr must be a finite number, not inf"),
        ("--clip-norm inf", "clip_norm must be a number above 0, not inf"),
        ("--clip-norm 1e999", "clip_norm must be a number above 0, not inf"),
        (f"--steps {'9' * 400}", "steps must be a whole number above 0, not 999"),
        ("--set optimizer.lr=true", "optimizer.lr must be a number, not True"),
        ("--set data.batch_size=True", "data.batch_size must be a whole number, not True"),
        ("--set data.batch_size=many", "data.batch_size must be a whole number, not 'many'"),
        ("--set optimizer.lr={[]:1}", "optimizer.lr must be a number, not '{[]:1}'"),
        ("--set optimizer.precondition=0", "optimizer.precondition must be true or false, not 0"),
        ("--set optimizer.lr=0.1 --set optimizer.lr=0.2", "optimizer.lr is set twice, to 0.1 and to 0.2"),
        ("--set optimizer.lr=1 --fixed optimizer.lr=1", "optimizer.lr is set twice, to 1 and to 1"),
        ("--batch-size 4 --set data.batch_size=8", "data.batch_size is set twice, to 8 and to 4"),
        ("--set optimizer.dropout=1.5", "Invalid dropout value: 1.5; it must be in [0, 1)"),
        ("--set model.dropout=1", "Invalid dropout value: 1.0; it must be in [0, 1)"),
        ("--set optimizer.lrr=1", "unknown hyperparameter 'optimizer.lrr'. Did you mean optimizer.lr"),
        ("--device cuda:77", "device cuda:77 is not available here"),
        ("--device cup", "unknown device 'cup': Expected one of cpu"),
        ("--data-dir .", "rotated_digits is embedded"),
    ],
)
def test_compare_refuses(options, message, capsys, tmp_path):
    assert main(["compare", *options.split(), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target 30 --trial-seed -1", "trial seed must be at least 0"),
        ("--target 30 --hparam-seed -1", "hparam seed must be at least 0"),
        ("--target 30 30 15 0 45 60 75", "leaves no source domain"),
        ("--target 31", "unknown domain"),
    ],
)
def test_train_refuses(options, message, capsys, tmp_path):
    assert main(["train", *options.split(), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("1", 1), ("1e-3", 1e-3), (".5", 0.5), ("-2", -2), ("bfloat16", "bfloat16")],
)
def test_a_value_of_the_command_line_is_what_it_is_in_a_file(text, value):
    name, parsed = assignment(f"optimizer.of_it={text}")
    assert (name, parsed, type(parsed)) == ("optimizer.of_it", value, type(value))


def test_assignments_must_have_a_name_and_a_value(capsys):
    for text in ("optimizer.lr", "=1", "optimizer.lr="):
        with pytest.raises(SystemExit):
            main(["compare", "--set", text])
        assert "is not of the form axis.name=value" in capsys.readouterr().err


def test_a_data_set_with_one_domain_is_refused(monkeypatch):
    digits = DATASETS["rotated_digits"].open(None, None)
    alone = DomainDataset("alone", digits.domains[:1], digits.classes, "small_images", "x")
    monkeypatch.setitem(DATASETS._entries, "alone", DatasetEntry(lambda *_: alone, kind="small_images"))
    with pytest.raises(ValueError, match="alone has only one domain, 0: leaving it out leaves nothing"):
        make_plan(Study(datasets=("alone",)))


def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["compare", "--steps", "1", "--optimizers", "sgd", "--targets", "0", "--trials", "1", "--output"]
    assert main([*options, str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert main([*options, str(tmp_path / "locked" / "out")]) == 1
        assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(tmp_path, capsys):
    options = ["train", "--target", "0", "--batch-size", "2", "--output", str(tmp_path)]
    assert main([*options, "--steps", "1"]) == 0
    assert "accuracy on 0, unseen in training" in capsys.readouterr().out
    assert main([*options, "--steps", "2"]) == 1
    assert "holds another run" in capsys.readouterr().err
