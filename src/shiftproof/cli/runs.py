"""The commands that train and assess runs: compare, train, diagnose."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftproof.cli.fields import add_fields, add_table_fields, given_table, study_of
from shiftproof.cli.options import (
    add_device,
    add_jobs,
    add_option,
    add_trackers,
    add_trial_seed,
    folder,
    jobs,
    path,
    place,
)

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands
    from shiftproof.studies import RayCluster, Results, Study

_RAY_OPTIONS = ("address", "cpus_per_run", "gpus_per_run")


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser(
        "compare",
        help="compare methods on domains left out of training",
        description="Compare methods on domains left out of training.",
        add=_add_compare,
        run=_compare,
    )
    commands.add_parser(
        "train", help="train one run", description="Train one run, leaving domains out.", add=_add_train, run=_train
    )
    commands.add_parser(
        "diagnose",
        help="measure and draw the quantities of the papers for a finished run",
        add=_add_diagnose,
        run=_diagnose,
    )


COMPARED: Mapping[str, Any] = {
    "datasets": ("vowels",),
    "optimizers": ("sgd", "adam", "genie", "genie_adamw"),
    "trials": 6,
}
"""What is compared unless told otherwise: real data in the package, in minutes, with enough trials to tell a point."""


def _add_compare(parser: Command) -> None:
    add_fields(parser, "compare", defaults=COMPARED)
    running = add_store(parser, default=Path("runs/compare"))
    running.add_argument("--profile", action="store_true", help="print how the runs spent their time")


def _add_train(parser: Command) -> None:
    add_fields(parser, "train", defaults={"optimizers": ("genie",)}, required=("targets",))
    run = parser.add_argument_group("run")
    add_trial_seed(run)
    add_option(run, "--hparam-seed", type=int, default=0, metavar="N", help="number of the setting; 0 is the defaults")
    run.add_argument("--output", type=place, required=True, metavar="RUN", help="the run's folder")
    add_trackers(run)
    add_option(run, "--devices", type=int, default=1, metavar="N", help="number of devices that train the run together")
    add_option(run, "--strategy", default="ddp", metavar="NAME", help="how several devices share a run: ddp or fsdp")


def _add_diagnose(parser: Command) -> None:
    parser.add_argument("run", type=folder, metavar="RUN", help="the run's folder")
    add_option(
        parser, "--what", nargs="+", default=["osgr", "balance", "sharpness", "landscape", "embedding"],
        metavar="NAME", help="quantities to measure",
    )  # fmt: skip
    add_data_of_runs(parser)
    parser.add_argument("--weights", type=path, metavar="FILE", help="file of weights the run started from, or hub")
    parser.add_argument("--class-vectors", type=path, metavar="FILE", help="file of class vectors the run was given")
    add_device(parser)


def add_data_of_runs(parser: Command) -> None:
    """Add the options that name the place of the data that finished runs were trained on."""
    add_option(
        parser, "--data-dir", type=path, none="none, for embedded data sets", metavar="DIR",
        help="folder that holds the data set of training",
    )  # fmt: skip
    add_option(
        parser, "--metadata", type=path, none="none", metavar="FILE",
        help="the table of training; its columns are named as then",
    )  # fmt: skip
    add_table_fields(parser)


def add_store(parser: Command, default: Path | None) -> argparse._ArgumentGroup:
    """Add the options of a study's store and workers; return their group."""
    running = parser.add_argument_group("running")
    add_option(
        running, "--output", type=place, default=default, required=default is None, metavar="DIR",
        help="folder for runs and tables, or an address on an object store, as in s3://bucket/study",
    )  # fmt: skip
    add_jobs(running, "one per core; 1 on a GPU; with ray, as many as there are resources for")
    add_option(
        running, "--backend", default="local", metavar="NAME", help="where runs train: local, or ray for a Ray cluster"
    )
    add_option(running, "--address", none="a new local one", metavar="ADDRESS", help="address of the Ray cluster")
    add_option(running, "--cpus-per-run", type=int, none="1", metavar="N", help="cores that each run reserves with ray")
    add_option(
        running, "--gpus-per-run", type=float, none="1 if the device is cuda", metavar="F",
        help="GPUs that each run reserves with ray; 0.5 puts two runs on a GPU",
    )  # fmt: skip
    add_trackers(running)
    return running


def _workers(options: argparse.Namespace, device: str) -> int | RayCluster:
    """Return the number of processes here, or the cluster, to train the runs."""
    from shiftproof.base.registry import UnknownNameError
    from shiftproof.studies import RayCluster

    given = {name: value for name in _RAY_OPTIONS if (value := getattr(options, name)) is not None}
    if options.backend == "ray":
        return RayCluster(**{"gpus_per_run": float(device.startswith("cuda")), **given}, jobs=options.jobs)
    if options.backend != "local":
        raise UnknownNameError("backend", options.backend, ["local", "ray"])
    if given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} needs --backend ray")
    return jobs(options, device)


def _compare(options: argparse.Namespace) -> int:
    return run_and_report(options, study_of(options))


def run_and_report(options: argparse.Namespace, study: Study) -> int:
    """Train the missing runs of a study, print its table and write its report."""
    from shiftproof.report import write_report
    from shiftproof.studies import read_results, run_study, time_shares
    from shiftproof.tables import write_csv

    output: Path = options.output
    try:
        results = run_study(
            study,
            output,
            _workers(options, study.device),
            trackers=tuple(options.track),
            on_end=lambda ended: write_csv(ended, output),
        )
    except KeyboardInterrupt:
        if (output / "table.csv").exists():
            print(f"written: {write_report(read_results(output), output)}")  # on the runs finished so far
        raise
    print_and_report(results, output)
    if getattr(options, "profile", False):
        print("time: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in time_shares(results).items()))
    return 0 if any(row["status"] == "finished" for row in results.rows) else 1


def print_and_report(results: Results, output: Path) -> None:
    """Print the tables of a study, whose `table.csv` is written, and write its report into its store."""
    from shiftproof.report import write_report
    from shiftproof.tables import as_text

    print(as_text(results))
    print(f"\nwritten: {output / 'table.csv'} and {write_report(results, output)}")


def _train(options: argparse.Namespace) -> int:
    from shiftproof.protocol import Unit
    from shiftproof.studies import train_one

    row = train_one(
        study_of(options),
        options.output,
        options.trial_seed,
        options.hparam_seed,
        trackers=tuple(options.track),
        devices=options.devices,
        strategy=options.strategy,
    )
    if row is None:  # torchrun started several processes, and only the first one reports
        return 0
    if row["status"] == "failed":
        raise ValueError(f"the run failed: {row['error']}")
    metric = row["metric"]
    print(f"{metric} on {row['target']}, unseen in training, {row['steps']} steps, protocol {row['protocol']}:")
    for rule, selected in row["selection"].items():
        if selected is not None:  # leave-one-domain-out validation needs more runs than this one
            value = selected["measures"][metric]
            text = "undefined" if value is None else f"{Unit.of(metric, value).text(value):>5}"
            print(f"  {rule:16} {text}{' %' if Unit.of(metric).percent else ''}  (step {selected['step']})")
    print(f"written: {options.output}, which evaluate, predict and export read")
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    from shiftproof.figures import diagnose
    from shiftproof.training import check_device

    check_device(options.device)
    files = diagnose(
        options.run,
        options.what,
        data_dir=options.data_dir,
        table=None if options.metadata is None else given_table(options, options.metadata),
        weights=options.weights,
        class_vectors=options.class_vectors,
        device=options.device,
    )
    print("written: " + ", ".join(map(str, files)))
    return 0
