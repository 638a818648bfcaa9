"""Bad input gets a clear error before anything is trained."""

import os

import pytest

from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.cli.fields import assignment
from shiftproof.data import DATASETS, DomainDataset
from shiftproof.data.dataset import DatasetEntry
from shiftproof.studies import RayCluster, Study, Variant, make_plan, run_study, train_one


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
        ("--schedule cosin", "unknown schedule 'cosin'. Did you mean cosine"),
        ("--warm-up -1", "warm_up must be a whole number, at least 0, not -1"),
        ("--warm-up 300", "a warm-up of 300 steps takes all 300 steps of the run"),
        ("--layer-decay 2", "layer_decay must be at most 1, not 2.0"),
        ("--l2-sp -0.1", "l2_sp must be a number, at least 0, not -0.1"),
        ("--accumulate 3", "a batch of 16 cannot be split into 3 equal parts"),
        ("--set optimizer.lr=-1", "Invalid learning rate: -1"),
        ("--set optimizer.lr=x", "optimizer.lr must be a number, not 'x'"),
        ("--set optimizer.lr=inf", "optimizer.lr must be a finite number, not inf"),
        ("--set optimizer.lr=1e999", "optimizer.lr must be a finite number, not inf"),
        ("--set optimizer.lr=-Infinity", "optimizer.lr must be a finite number, not -inf"),
        ("--set optimizer.lr=nan", "optimizer.lr must be a finite number, not nan"),
        (f"--set optimizer.lr={'9' * 400}", "optimizer.lr must be a finite number, not 999"),
        (f"--set optimizer.lr={'9' * 5000}", "optimizer.lr must be a finite number, not inf"),
        ("--clip-norm inf", "clip_norm must be a finite number above 0, not inf"),
        ("--clip-norm 1e999", "clip_norm must be a finite number above 0, not inf"),
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
        ("--set sgd.lr=-1", "--set: Invalid learning rate: -1"),
        ("--set sgd.lr=x", "sgd.lr must be a number, not 'x'"),
        ("--set yogi.lr=1", "no method of the study has yogi.lr"),
        ("--set genie.rho=1", "unknown hyperparameter 'genie.rho'"),
        ("--set optimizer.lrr=1", "unknown hyperparameter 'optimizer.lrr'. Did you mean optimizer.lr"),
        ("--device cuda:77", "device cuda:77 is not available here"),
        ("--device cup", "unknown device 'cup': Expected one of cpu"),
        ("--data-dir .", "rotated_digits is embedded"),
    ],
)
def test_compare_refuses(options, message, capsys, tmp_path):
    assert main(["compare", "--dataset", "rotated_digits", *options.split(), "--output", str(tmp_path / "out")]) == 1
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
        assert "is not of the form part.name=value, such as optimizer.lr=0.03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"single_source": "no"}, "single_source must be True or False, not 'no'"),
        ({"compile": 1}, "compile must be True or False, not 1"),
        ({"protocol": None}, "protocol must be a str, not None"),
        ({"device": None}, "device must be a str, not None"),
        ({"model": 3}, "model must be a str, not 3"),
        ({"precision": 32}, "precision must be a str, not 32"),
        ({"weights": "w.pt"}, "weights must be a Path, not 'w.pt'"),
        ({"data_dir": "data"}, "data_dir must be a Path, not 'data'"),
        ({"algorithms": "erm"}, r"algorithms must be a tuple, not 'erm'; for one entry, \('erm',\)"),
        ({"targets": (0, 15)}, "an entry of targets must be a str, not 0"),
        ({"fixed": ("optimizer.lr", 1)}, "fixed must be a mapping of hyperparameters to values, not"),
        ({"variants": ()}, "name at least one variant"),
        ({"variants": ("2x",)}, "an entry of variants must be a Variant, not '2x'"),
        ({"variants": (Variant("2x", published=1),)}, "published of variant 2x must be a str, not 1"),
    ],
)
def test_fields_of_another_type_are_refused_by_name(fields, message):
    with pytest.raises(FieldError, match=message) as caught:
        Study(**fields)
    assert caught.value.field in fields


@pytest.mark.parametrize("workers", [0, -1, "1", True, 1.0, None])
def test_workers_that_could_train_nothing_are_refused(workers, tmp_path):
    with pytest.raises(ValueError, match=f"workers must be a whole number above 0 or a RayCluster, not {workers!r}"):
        run_study(Study(), tmp_path / "out", workers)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_text_is_refused():
    with pytest.raises(ValueError, match=r"the output must be a path, not the text 'out': Path\('out'\)"):
        run_study(Study(), "out", 1)
    with pytest.raises(ValueError, match="the output must be a path"):
        train_one(Study(), "out", 0, 0)


@pytest.mark.parametrize(
    ("reserved", "message"),
    [
        ({"cpus_per_run": "2"}, "CPUs per run must be a whole number above 0, not '2'"),
        ({"gpus_per_run": "1"}, "GPUs per run must be between 0 and 1, because a run has one, not '1'"),
        ({"jobs": 1.5}, r"jobs must be a whole number above 0, not 1\.5"),
    ],
)
def test_resources_of_another_type_are_refused(reserved, message):
    with pytest.raises(ValueError, match=message):
        RayCluster(**reserved)


def test_a_data_set_with_one_domain_is_refused(monkeypatch):
    digits = DATASETS["rotated_digits"].open(None, None)
    alone = DomainDataset("alone", digits.domains[:1], digits.classes, "small_images", "x")
    monkeypatch.setitem(DATASETS._entries, "alone", DatasetEntry(lambda *_: alone, kind="small_images"))
    with pytest.raises(ValueError, match="alone has only one domain, 0: leaving it out leaves nothing"):
        make_plan(Study(datasets=("alone",)))


def test_an_output_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = [
        "compare",
        "--dataset",
        "rotated_digits",
        "--steps",
        "1",
        "--optimizers",
        "sgd",
        "--targets",
        "0",
        "--trials",
        "1",
        "--output",
    ]
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
