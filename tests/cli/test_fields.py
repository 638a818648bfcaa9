"""Every field of a study is described once, and the command line, help and docs say what is described."""

import re
import subprocess
import sys
from argparse import BooleanOptionalAction, _SubParsersAction
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from benchmarks.fields_table import PAGE, with_tables
from shiftproof.cli import main
from shiftproof.cli.fields import given_fields
from shiftproof.cli.parser import make_parser
from shiftproof.cli.runs import COMPARED
from shiftproof.studies import RayCluster, Study
from shiftproof.studies.field_info import ALL, GROUPS, STUDIES, default_of, default_text, info_of, option_names
from shiftproof.studies.study import field_types

WITHOUT_OPTION: dict[str, str] = {}
"""Fields that no command takes, with the reason."""
NEEDED = {
    "study": ["file.yaml"],
    "train": ["--target", "0", "--output", "out"],
    "bench data": ["--target", "0", "--data-dir", "here"],
    "encode": ["--dataset", "PACS", "--model", "resnet18", "--output", "out"],
}
"""What a command cannot do without."""
CASES = [(command, field) for command in ALL for field in fields(Study)]


def _parser(command):
    """Return the parser of a command as the table of fields names it."""
    parser = make_parser().complete()
    for name in {"study": "study plan"}.get(command, command).split():
        [commands] = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
        parser = commands.choices[name].complete()
    return parser


def _takes(command, field):
    info = info_of(field)
    return command in info.commands or (info.one is not None and command in info.one.commands)


def _option(command, field):
    found = [one for one in _parser(command)._actions if one.dest == field.name and one.option_strings]
    return found[0] if found else None


@pytest.mark.parametrize("field", fields(Study), ids=lambda field: field.name)
def test_a_field_is_described(field):
    info = info_of(field)
    assert info.group in GROUPS
    assert len(info.help) <= 112
    assert not info.help.endswith(".")
    assert "(default" not in info.help
    assert info.none or default_text(default_of(field))
    taken = [command for command in ALL if _takes(command, field)]
    assert bool(taken) != (field.name in WITHOUT_OPTION)
    assert {*info.commands, *(info.one.commands if info.one else ())} == set(taken)
    assert f"\n        {field.name}: {info.help}" in Study.__doc__


@pytest.mark.parametrize("field", fields(Study), ids=lambda field: field.name)
def test_a_choice_is_named_in_the_help(field):
    kind = field_types()[field.name]
    choices = [choice for one in (kind, *get_args(kind)) if get_origin(one) is Literal for choice in get_args(one)]
    assert [choice for choice in choices if choice not in info_of(field).help] == []


@pytest.mark.parametrize("command", ALL)
def test_a_command_has_the_options_of_the_fields_that_it_takes(command):
    for field in fields(Study):
        option = _option(command, field)
        if command == "bench data" and field.name == "steps":  # its own: of a round
            continue
        assert (option is not None) == _takes(command, field)
        if option is not None:
            one = info_of(field).one
            names = [one.option] if one and command in one.commands else [*option_names(field)]
            if isinstance(option, BooleanOptionalAction):
                names.append(f"--no-{field.name.replace('_', '-')}")
            assert option.option_strings == names
            assert option.default is None  # what is not given is not known from what has the default's value


@pytest.mark.parametrize("command", STUDIES)
def test_help_ends_in_the_default(command):
    for field in fields(Study):
        if (option := _option(command, field)) is not None:
            default = COMPARED.get(field.name, default_of(field)) if command == "compare" else default_of(field)
            assert option.help.endswith(f"(default: {default_text(default, info_of(field).none)})")


def test_help_ends_in_the_default_of_the_command():
    for command, name, default in (
        ("train", "optimizers", "genie"),
        ("figure agreement", "annealers", "gga"),
        ("figure agreement", "optimizers", "adam"),
        ("figure sensitivity", "trials", "1"),
        ("figure osgr", "targets", "the first"),
        ("bench data", "model", "resnet18"),
    ):
        [field] = [field for field in fields(Study) if field.name == name]
        assert _option(command, field).help.endswith(f"(default: {default})")
    assert "32" in _parser("bench data").format_help()
    assert "runs/compare" in _parser("compare").format_help()
    assert RayCluster().cpus_per_run == 1  # as help says of None


@pytest.mark.parametrize("command", ALL)
def test_what_is_not_given_leaves_its_field_alone(command):
    needed = NEEDED.get(command, [])
    options = make_parser().parse_args([*{"study": "study plan"}.get(command, command).split(), *needed])
    assert given_fields(options).keys() <= {"targets", "data_dir", "datasets", "model"}


def test_what_is_given_is_of_the_type_of_its_field():
    text = (
        "study plan file.yaml --name a --published b --datasets c d --data-dir e --metadata H --domain I --label J "
        "K --task L --features M N:number --image O --group P --id U --missing-labels Q --algorithms f "
        "--optimizers g h --annealers i --variants j --targets k l+m --no-single-source --trials 1 --hparam-trials 2 "
        "--tune n --selection o p --baseline q --search r --protocol s --steps 3 --checkpoint-freq 4 --kind t "
        "--model u --image-size 5 --split v --weights w --normalisation x --accumulate 6 --clip-norm 7 "
        "--precision y --compile --averaging z --device A --metric C --augmentation E --sampling F --class-weights G "
        "--train R --views 10 --cache S --cache-limit 11 "
        "--class-vectors V --schedule T --warm-up 12 --layer-decay 0.5 --l2-sp 0.1 --all-data "
        "--set B.c=8 --fixed D.e=f --batch-size 9 --import own.py --imports other"
    )
    given = given_fields(make_parser().parse_args(text.split()))
    assert given.keys() == {field.name for field in fields(Study)}
    assert given["datasets"] == ("c", "d")
    assert given["targets"] == ("k", "l+m")
    assert (given["labels"], given["features"]) == (("J", "K"), ("M", "N:number"))
    assert given["imports"] == ("own.py", "other")
    assert (given["data_dir"], given["weights"], given["class_vectors"]) == (Path("e"), Path("w"), Path("V"))
    assert (given["single_source"], given["compile"]) == (False, True)
    assert (given["steps"], given["clip_norm"]) == (3, 7.0)
    assert given["fixed"] == {"B.c": 8, "D.e": "f", "data.batch_size": 9}


def test_one_target_is_joined_and_one_method_is_one():
    text = "train --target 0 15 --algorithm irm --optimizer sam --annealer gga --output out"
    options = make_parser().parse_args(text.split())
    assert given_fields(options) == {
        "targets": ("0+15",), "algorithms": ("irm",), "optimizers": ("sam",), "annealers": ("gga",)
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "figure balance --averaging swad",
        "figure osgr --averaging ema",
        "figure osgr --all-data",
        "figure osgr --checkpoint-freq 4",
        "figure agreement --checkpoint-freq 4",
        "figure embedding --trials 2",
        "figure landscape --selection oracle",
        "figure agreement --averaging swad",
        "figure agreement --optimizers adam sgd",
        "figure sensitivity --selection oracle",
        "train --target 0 --output out --datasets rotated_digits",
        "bench data --target 0 --data-dir here --datasets a b",
        "bench data --target 0 --data-dir here --clip-norm 1",
        "encode --dataset a --model b --output out --datasets c d",
        "encode --dataset a --model b --output out --features age",
        "encode --dataset a --model b --output out --compile",
    ],
)
def test_a_command_refuses_what_it_would_ignore(command, capsys):
    with pytest.raises(SystemExit):
        main(command.split())
    assert "unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["figure agreement", "figure osgr"])
def test_a_command_of_one_data_set_refuses_two(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--dataset", "rotated_digits", "colored_digits"])
    assert "unrecognized arguments: colored_digits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert re.search(r"--dataset NAME +name of the data set", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["", "compare", "train", "encode", "predict", "export", "study run", "figure osgr"])
def test_help_imports_neither_torch_nor_numpy(command):
    code = (
        "import sys\nfrom shiftproof.cli import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\n"
        "except SystemExit:\n    print({'numpy', 'torch', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_tables_in_the_docs_are_those_of_today():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "write it anew: python -m benchmarks.fields_table"


@pytest.mark.parametrize(
    "command",
    [
        "evaluate",
        "predict",
        "export",
        "diagnose",
        "study combine",
        "study table",
        "study status",
        "list",
        "data check",
        "bench optimizer",
    ],
)
def test_commands_without_a_study_import_plugins_too(command):
    [option] = [one for one in _parser(command)._actions if "--import" in one.option_strings]
    assert option.dest == "imports"
