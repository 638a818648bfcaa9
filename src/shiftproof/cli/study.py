"""The commands of whole studies: study plan, run, combine, table, report, status."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shiftproof.base.choices import COMBINATIONS, OVERS
from shiftproof.cli.fields import add_fields, given_fields, given_table
from shiftproof.cli.options import add_device, add_option, cores, place, study_file
from shiftproof.cli.runs import add_data_of_runs, add_store, print_and_report, run_and_report

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands
    from shiftproof.studies import Study


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser("study", help="plan, run and tabulate a study described in a file", add=_add_study)


def _add_study(parser: Command) -> None:
    commands = parser.add_commands("what")
    wins = "Options override the file and its scale; the defaults above apply to fields that neither of them sets."
    commands.add_parser(
        "plan", help="estimate a study's cost: runs, passes, hours here", epilog=wins, add=_add_plan, run=_plan
    )
    commands.add_parser("run", help="train the missing runs of a study", epilog=wins, add=_add_run, run=_run)
    commands.add_parser(
        "combine",
        help="average the weights, or the predictions, of a study's finished runs",
        description="Average the weights, or the predictions, of a study's finished runs, and add rows of them to it.",
        add=_add_combine,
        run=_combine,
    )
    commands.add_parser("table", help="print the tables of a study, finished or not", add=_add_table, run=_table)
    commands.add_parser("report", help="write the report of a study, finished or not", add=_add_output, run=_report)
    commands.add_parser("status", help="show the progress of a study, even while it runs", add=_add_output, run=_status)


def _add_plan(parser: Command) -> None:
    _add_file(parser)
    parser.add_argument("--output", type=place, metavar="DIR", help="store whose runs are left out of the estimate")


def _add_run(parser: Command) -> None:
    _add_file(parser)
    add_store(parser, default=None)


def _add_file(parser: Command) -> None:
    parser.add_argument(
        "file",
        type=study_file,
        metavar="STUDY",
        help="name of a study, as in `shiftproof list studies`, or its file",
    )
    add_option(parser, "--scale", default="paper", metavar="NAME", help="scale of the study: paper, small or smoke")
    add_fields(parser, "study")


def _add_combine(parser: Command) -> None:
    _add_output(parser)
    add_option(
        parser, "--ways", nargs="+", choices=COMBINATIONS, none="all", metavar="NAME",
        help="what is made of the runs: diwa (mean of all weights), diwa_greedy (of those that validation takes one by "
        "one) or ensemble (mean of predictions)",
    )  # fmt: skip
    add_option(
        parser, "--over", choices=OVERS, none="settings where there are several", metavar="NAME",
        help="what is combined: the settings of each trial, or the runs of all trials",
    )  # fmt: skip
    add_option(
        parser, "--method", nargs="+", default=[], none="all", dest="methods", metavar="METHOD",
        help="methods whose runs are combined, written as in tables: 'erm + sgd'",
    )  # fmt: skip
    add_data_of_runs(parser)
    add_device(parser)


def _add_table(parser: Command) -> None:
    _add_output(parser)
    add_option(
        parser, "--format", default="text", metavar="NAME", help="form of the tables: text, markdown, latex or csv"
    )
    add_option(parser, "--rule", none="the study's first", metavar="NAME", help="selection rule")
    add_option(
        parser, "--metric", none="the study's", metavar="MEASURE", help="measure to show (docs/reference/metrics.md)"
    )
    add_option(
        parser, "--baseline", none="the study's", metavar="METHOD",
        help="method that the others are compared with, as in 'erm + sgd'",
    )  # fmt: skip


def _add_output(parser: Command) -> None:
    parser.add_argument("output", type=place, metavar="DIR", help="the study's store: the --output of its runs")


def _read_study(options: argparse.Namespace, given: dict[str, Any]) -> Study:
    """Read the study's file, and print a line for every variant that was left out."""
    from shiftproof.studies import read_study

    study, skipped = read_study(options.file, options.scale, given)
    for line in skipped:
        print(line)
    return study


def _run(options: argparse.Namespace) -> int:
    from shiftproof.studies import naming_lines

    given = given_fields(options)
    with naming_lines(options.file, options.scale, given):
        study = _read_study(options, given)
        settings = "setting" if study.hparam_trials == 1 else "settings"
        print(f"every method has {study.hparam_trials} {settings} to choose from")
        return run_and_report(options, study)


def _plan(options: argparse.Namespace) -> int:
    from shiftproof.studies import Store, make_plan, naming_lines, plan_text, study_costs

    given = given_fields(options)
    with naming_lines(options.file, options.scale, given):
        study = _read_study(options, given)
        plan = make_plan(study, absent=True)
    runs = plan.distinct if options.output is None else Store(options.output).missing(plan)
    print(plan_text(study, plan, study_costs(study, plan, runs), cores()))
    return 0


def _combine(options: argparse.Namespace) -> int:
    from shiftproof.studies import combine_runs
    from shiftproof.tables import write_csv

    results = combine_runs(
        options.output,
        ways=options.ways,
        over=options.over,
        methods=options.methods,
        data_dir=options.data_dir,
        table=None if options.metadata is None else given_table(options, options.metadata),
        device=options.device,
    )
    write_csv(results, options.output)
    print_and_report(results, options.output)
    return 0


def _table(options: argparse.Namespace) -> int:
    from shiftproof.base.registry import UnknownNameError
    from shiftproof.studies import read_results
    from shiftproof.tables import FORMATS

    if options.format not in FORMATS:
        raise UnknownNameError("format", options.format, list(FORMATS))
    results = read_results(options.output, options.metric)
    print(FORMATS[options.format](results, options.rule, options.baseline))
    return 0


def _report(options: argparse.Namespace) -> int:
    from shiftproof.report import write_report
    from shiftproof.studies import read_results

    print(f"written: {write_report(read_results(options.output), options.output)}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from shiftproof.studies import read_status

    print(read_status(options.output).text())
    return 0
