"""The command line: parses and calls the library."""

from __future__ import annotations

import argparse
import io
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from shiftproof import __version__

if TYPE_CHECKING:
    from shiftproof.hparams import Value
    from shiftproof.studies import RayCluster, Study

INTERRUPTED = 130
NOT_READ = 141
_INTERRUPTED_TEXT = "interrupted; the same command continues where it stopped"
_RAY_OPTIONS = ("address", "cpus_per_run", "gpus_per_run")
FIGURE_CANDIDATES = 25
"""Of GGA's search in a figure, unless they are fixed by hand: a tenth of the published, so that it takes a minute."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    That is 0, 1 for bad input or a failure, 130 if interrupted, and 141 if what reads its output stopped reading.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without ± shows an escape and not an error
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = signal.getsignal(signal.SIGINT)
    ours = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        options = _parser().parse_args(arguments)
        warnings.formatwarning = lambda message, *_, **__: f"shiftproof: warning: {message}\n"  # no line of our code
        status: int = options.command(options)
        print(end="", flush=True)  # what is left of it would be written after this, when errors end in a traceback
    except KeyboardInterrupt:
        print(_INTERRUPTED_TEXT, file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOT_READ
        print(f"shiftproof: error: {error}", file=sys.stderr)
        return 1
    finally:
        if ours:
            signal.signal(signal.SIGINT, handler)
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end at once where a module is imported: torch and numpy make other errors of it.

    All files are whole or absent, and workers end with this process.
    """
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"{_INTERRUPTED_TEXT}\n".encode())
            os._exit(INTERRUPTED)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def _nobody_reads() -> bool:
    """Return whether the other end of the standard output is closed, as that of `head`, and if so drop the rest."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # of errors it tells in any case
    if not poll.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shiftproof",
        description="Train models that hold up on domains they have never seen, and compare ways of doing it.",
    )
    parser.add_argument("--version", action="version", version=f"shiftproof {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    compare = commands.add_parser(
        "compare",
        help="compare methods on every unseen domain",
        description="Compare methods, leaving domains out.",
    )
    _add_run_options(compare)
    _add_study_options(compare)
    _add_store_options(compare, default=Path("runs/compare"))
    compare.add_argument("--profile", action="store_true", help="print how the runs spent their time")
    compare.set_defaults(command=_compare)

    train = commands.add_parser("train", help="one run", description="Train one run, leaving domains out.")
    _add_run_options(train)
    train.add_argument("--algorithm", dest="algorithms", nargs=1, metavar="NAME", help="(default: erm)")
    train.add_argument("--optimizer", dest="optimizers", nargs=1, metavar="NAME", help="(default: genie)")
    train.add_argument("--annealer", dest="annealers", nargs=1, metavar="NAME", help="(default: none)")
    train.add_argument("--target", nargs="+", required=True, metavar="DOMAIN", help="the domains left out")
    train.add_argument("--trial-seed", type=int, default=0, metavar="N")
    train.add_argument("--hparam-seed", type=int, default=0, metavar="N", help="setting; 0 is the default")
    train.add_argument("--output", type=_place, required=True, metavar="RUN", help="the run's folder")
    _add_tracker_option(train)
    train.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices that train it together (default: 1)"
    )
    train.add_argument("--strategy", default="ddp", metavar="NAME", help="of several devices: ddp (default) or fsdp")
    train.set_defaults(command=_train)

    _add_study_commands(commands.add_parser("study", help="whole tables, from a file"))

    evaluate = commands.add_parser("evaluate", help="score a run's model on a folder of images")
    evaluate.add_argument("run", type=_place, metavar="RUN", help="the run's folder")
    evaluate.add_argument(
        "--data-dir",
        type=_path,
        required=True,
        metavar="DIR",
        help="<class>/<image> or <domain>/<class>/<image>",
    )
    evaluate.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    evaluate.set_defaults(command=_evaluate)

    diagnose = commands.add_parser("diagnose", help="measure and draw what the theory speaks of, of a finished run")
    diagnose.add_argument("run", type=_folder, metavar="RUN", help="the run's folder")
    diagnose.add_argument(
        "--what", nargs="+", default=["osgr", "balance", "sharpness", "landscape", "embedding"], metavar="NAME",
        help="osgr balance sharpness landscape embedding (default: all)",
    )  # fmt: skip
    diagnose.add_argument("--data-dir", type=_path, metavar="DIR", help="folder of the run's data set, unless embedded")
    diagnose.add_argument("--weights", type=_path, metavar="FILE", help="weights that the run started from")
    diagnose.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    diagnose.set_defaults(command=_diagnose)

    _add_data_commands(commands.add_parser("data", help="fetch data sets, look at those on the disk"))

    bench = commands.add_parser("bench", help="measure what runs cost").add_subparsers(required=True, metavar="what")
    data = bench.add_parser("data", help="time the data path against the usual one")
    data.add_argument("--dataset", default="folder", metavar="NAME", help="of image files (default: folder)")
    data.add_argument("--data-dir", type=_path, required=True, metavar="DIR", help="folder of the data set")
    data.add_argument("--target", nargs="+", required=True, metavar="DOMAIN", help="the domains left out")
    data.add_argument("--model", default="resnet18", metavar="NAME", help="(default: resnet18)")
    data.add_argument("--weights", type=_path, metavar="FILE", help="weights to start from: safetensors or torch")
    data.add_argument(
        "--kind", metavar="NAME", help="photographs or small_images, for a folder (default: by a look at the files)"
    )
    data.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the model's)")
    data.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per source domain (default: 32)")
    data.add_argument("--precision", default="float32", metavar="NAME", help="float32 (default) or bf16")
    data.add_argument("--compile", action="store_true", help="compile the featurizer (torch.compile)")
    data.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    data.add_argument("--steps", type=int, default=20, metavar="N", help="steps timed per round (default: 20)")
    data.add_argument("--output", type=_file, metavar="FILE", help="where to write all numbers, as JSON")
    data.set_defaults(command=_bench_data)
    optimizer = bench.add_parser("optimizer", help="time the step of every optimizer beside fused AdamW")
    optimizer.add_argument("--model", default="resnet18", metavar="NAME", help="whose parameters (default: resnet18)")
    optimizer.add_argument("--elements", type=int, metavar="N", help="one tensor of so many elements instead")
    optimizer.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    optimizer.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each (default: 15)")
    optimizer.add_argument("--output", type=_file, metavar="FILE", help="where to write all numbers, as JSON")
    optimizer.set_defaults(command=_bench_optimizer)
    annealer = bench.add_parser("annealer", help="time GGA's search beside the released one")
    _add_run_options(annealer)
    annealer.add_argument("--target", nargs="+", metavar="DOMAIN", help="left out (default: all but three domains)")
    annealer.add_argument("--candidates", type=int, default=100, metavar="N", help="of a search (default: 100)")
    annealer.add_argument("--rounds", type=int, default=3, metavar="N", help="searches of each (default: 3)")
    annealer.add_argument("--output", type=_file, metavar="FILE", help="where to write all numbers, as JSON")
    annealer.set_defaults(command=_bench_annealer)
    diagnostics = bench.add_parser("diagnostics", help="time what diagnostics cost beside a plain backward pass")
    _add_run_options(diagnostics)
    diagnostics.add_argument("--target", nargs="+", metavar="DOMAIN", help="left out (default: all but three domains)")
    diagnostics.add_argument("--samples", type=int, default=256, metavar="N", help="images per domain (default: 256)")
    diagnostics.add_argument("--rounds", type=int, default=10, metavar="N", help="turns of each (default: 10)")
    diagnostics.add_argument("--output", type=_file, metavar="FILE", help="where to write all numbers, as JSON")
    diagnostics.set_defaults(command=_bench_diagnostics)
    store = bench.add_parser("store", help="time what is done with a store of many runs, which are made up")
    store.add_argument("--runs", type=int, default=10_000, metavar="N", help="at least (default: 10000)")
    store.add_argument("--output", type=_file, metavar="FILE", help="where to write all numbers, as JSON")
    store.set_defaults(command=_bench_store)

    figure = commands.add_parser("figure", help="draw what the papers draw").add_subparsers(
        required=True, metavar="what"
    )
    agreement = figure.add_parser(
        "agreement", help="similarity of the domains' gradients over training, without and with an annealer"
    )
    _add_run_options(agreement)
    agreement.add_argument("--algorithm", dest="algorithms", nargs=1, metavar="NAME", help="(default: erm)")
    agreement.add_argument("--optimizer", dest="optimizers", nargs=1, metavar="NAME", help="(default: adam)")
    agreement.add_argument("--annealer", default="gga", metavar="NAME", help="gga (default) or gga_l")
    agreement.add_argument("--target", nargs="+", metavar="DOMAIN", help="the domains left out (default: the first)")
    agreement.add_argument("--trial-seed", type=int, default=0, metavar="N")
    agreement.add_argument("--output", type=_folder, default=Path("runs/agreement"), metavar="DIR")
    agreement.set_defaults(command=_figure_agreement)
    for name, what in (
        ("balance", "how evenly updates are spread over the parameters"),
        ("osgr", "the one-step generalization ratio over training"),
        ("embedding", "features before and after training"),
        ("landscape", "where optimizers end on a simulated landscape, and the paths of real runs"),
        ("sensitivity", "accuracy against the hyperparameters"),
    ):
        command = figure.add_parser(name, help=what)
        _add_run_options(command)
        command.add_argument("--algorithm", dest="algorithms", nargs=1, metavar="NAME", help="(default: erm)")
        command.add_argument("--optimizers", nargs="+", metavar="NAME", help="(default: sgd adam sam genie)")
        command.add_argument("--annealer", dest="annealers", nargs=1, metavar="NAME", help="(default: none)")
        command.add_argument("--target", nargs="+", metavar="DOMAIN", help="the domains left out (default: the first)")
        if name == "sensitivity":
            command.add_argument("--trials", type=int, default=1, metavar="N", help="trial seeds (default: 1)")
            command.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: cores; 1 on a GPU)")
        else:
            command.add_argument("--trial-seed", type=int, default=0, metavar="N")
        if name == "embedding":
            command.add_argument("--method", default="pca", metavar="NAME", help="pca (default) or umap")
        command.add_argument("--output", type=_folder, default=Path("runs/figures"), metavar="DIR")
        command.set_defaults(command=_figure, figure=name)
    return parser


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="what")
    get = commands.add_parser("get", help="fetch a published data set; interrupted, it continues")
    get.add_argument(
        "name", metavar="NAME",
        help="pacs vlcs officehome terraincognita domainnet rotated_mnist colored_mnist",
    )  # fmt: skip
    get.add_argument("--output", type=_folder, default=Path("data"), metavar="DIR", help="(default: data)")
    get.set_defaults(command=_data_get)
    check = commands.add_parser("check", help="count images, find unreadable ones and the same one twice")
    check.add_argument("folder", type=_folder, metavar="DIR", help="<domain>/<class>/<image>, or MNIST")
    check.add_argument(
        "--dataset", metavar="NAME",
        help="the published one to compare with, as `data get` names it (default: by the folder's name)",
    )  # fmt: skip
    check.set_defaults(command=_data_check)


def _add_study_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="what")
    wins = "An option that is given wins over the file and its scale; a default above is of a field that neither gives."
    plan = commands.add_parser("plan", help="what a study would cost: runs, passes, hours here", epilog=wins)
    run = commands.add_parser("run", help="train what is missing of a study", epilog=wins)
    for command in (plan, run):
        command.add_argument("file", type=Path, metavar="FILE", help="the study, in YAML")
        command.add_argument("--scale", default="paper", metavar="NAME", help="paper (default), small or smoke")
        _add_run_options(command)
        _add_study_options(command)
        command.add_argument("--name", metavar="TEXT", help="what the study is called")
        command.add_argument("--published", metavar="TABLE", help="the published table that it stands beside")
        command.add_argument("--variants", nargs="+", metavar="NAME", help="those of the file's that are run")
    plan.add_argument("--output", type=_place, metavar="DIR", help="leave out the runs that this store holds")
    plan.set_defaults(command=_study_plan)
    _add_store_options(run, default=None)
    run.set_defaults(command=_study_run)

    table = commands.add_parser("table", help="the tables of what there is of a study")
    report = commands.add_parser("report", help="write the report of what there is of a study")
    status = commands.add_parser("status", help="how far a study is, also while it runs")
    for command in (table, report, status):
        command.add_argument("output", type=_place, metavar="DIR", help="the study's output")
    table.add_argument("--format", default="text", metavar="NAME", help="text (default), markdown, latex or csv")
    table.add_argument("--rule", metavar="NAME", help="selection rule (default: the study's first)")
    table.add_argument("--baseline", metavar="METHOD", help="what differences are taken from, as in 'erm + sgd'")
    table.set_defaults(command=_study_table)
    report.set_defaults(command=_study_report)
    status.set_defaults(command=_study_status)


def _add_store_options(parser: argparse.ArgumentParser, default: Path | None) -> None:
    parser.add_argument(
        "--jobs", type=int, metavar="N",
        help="runs at a time (default: cores; 1 on a GPU; with ray: as many as there are resources for)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=_place, default=default, required=default is None, metavar="DIR",
        help="a folder, or an address on an object store, as in s3://bucket/study",
    )  # fmt: skip
    parser.add_argument("--backend", default="local", metavar="NAME", help="local (default), or ray: on a cluster")
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: one of this machine)")
    parser.add_argument("--cpus-per-run", type=int, metavar="N", help="that a run reserves with ray (default: 1)")
    parser.add_argument(
        "--gpus-per-run", type=float, metavar="F",
        help="that a run reserves with ray, 0.5 for two runs on each (default: 1 if the device is cuda)",
    )  # fmt: skip
    _add_tracker_option(parser)


def _add_tracker_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--track", nargs="+", default=[], metavar="NAME", help="write the curves to tensorboard, mlflow or wandb too"
    )


def _add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of a study that make it more than one run; what is not given keeps its default."""
    for names, kind in (
        ("algorithms", "what is minimised (default: erm)"),
        ("optimizers", "how a step is taken (default: sgd adam sam genie)"),
        ("annealers", "what happens around a step (default: none)"),
    ):
        parser.add_argument(f"--{names}", nargs="+", metavar="NAME", help=kind)
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="DOMAIN",
        help="left out one by one, A+B together (default: each in turn)",
    )
    parser.add_argument(
        "--single-source",
        action=argparse.BooleanOptionalAction,
        help="train on one domain, every domain in turn",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="trial seeds (default: 3)")
    parser.add_argument(
        "--hparam-trials", type=int, metavar="N",
        help="settings that every method chooses from by validation; setting 0 is its default (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tune", metavar="NAME", help="choose settings per_target (default), or shared: one per method and data set"
    )
    parser.add_argument(
        "--selection", nargs="+", metavar="RULE",
        help="training_domain, leave_one_domain_out, oracle, last: side by side, the first is the table's",
    )  # fmt: skip
    parser.add_argument("--baseline", metavar="METHOD", help="what differences are taken from, as in 'erm + sgd'")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of a study that every run has; what is not given keeps its default."""
    parser.add_argument(
        "--dataset", "--datasets", dest="datasets", nargs="+", metavar="NAME", help="(default: rotated_digits)"
    )
    parser.add_argument("--data-dir", type=_path, metavar="DIR", help="folder of the data set, unless embedded")
    parser.add_argument("--search", metavar="NAME", help="short (default) or protocol: defaults and ranges")
    parser.add_argument(
        "--protocol", metavar="NAME", help="dialect: shiftproof (default), domainbed, domainbed-head or swad"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N",
        help="updates (default: the protocol's; shiftproof: 300, on photographs without weights 3000)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-freq", type=int, metavar="N",
        help="steps between evaluations (default: the protocol's; shiftproof: steps / 5)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per source domain and step")
    parser.add_argument(
        "--kind", metavar="NAME",
        help="of the images of --dataset folder: photographs or small_images (default: by a look at the files)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME", help="(default: a small one on small images; photographs need one named)"
    )
    parser.add_argument("--weights", type=_path, metavar="FILE", help="weights to start from: safetensors or torch")
    parser.add_argument(
        "--normalisation", metavar="MEAN,STD",
        help="that the weights were trained with, or imagenet or half (default: the file's, else the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the images (default: of photographs the model's, else their own)",
    )
    parser.add_argument(
        "--split", metavar="NAME",
        help="random (default, DomainBed's) or grouped: drawings of one photograph stay on one side",
    )  # fmt: skip
    parser.add_argument("--accumulate", type=int, metavar="N", help="parts to split a batch into")
    parser.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of the gradient")
    parser.add_argument("--precision", metavar="NAME", help="float32 (default) or bf16")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the featurizer (torch.compile)"
    )
    parser.add_argument("--averaging", metavar="NAME", help="of the weights: none (default), swad or ema")
    parser.add_argument("--device", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--set", "--fixed", action="append", default=[], dest="fixed", metavar="AXIS.NAME=VALUE", type=_assignment,
        help="fix a hyperparameter for all methods, as in optimizer.lr=0.03; may be repeated",
    )  # fmt: skip


def _assignment(text: str) -> tuple[str, Value]:
    from shiftproof.hparams import parse_value

    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form axis.name=value")
    return name, parse_value(value)


def _path(text: str) -> Path:
    if not text:  # of a variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _place(text: str) -> Path:
    from shiftproof.files import output_path

    _path(text)
    try:
        return output_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _folder(text: str) -> Path:
    return _local(text, "folder")


def _file(text: str) -> Path:
    return _local(text, "file")


def _local(text: str, what: str) -> Path:
    if "://" in text and not text.startswith("file://"):  # said first, whether its package is installed or not
        raise argparse.ArgumentTypeError(f"this takes a {what} of this machine, not {text}")
    return _place(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(options: argparse.Namespace, device: str) -> int:
    jobs: int = options.jobs if options.jobs is not None else _cores() if device == "cpu" else 1
    if jobs < 1:
        raise ValueError(f"jobs must be a whole number above 0, not {jobs}")
    return jobs


def _workers(options: argparse.Namespace, device: str) -> int | RayCluster:
    """Return what trains the runs: processes here, or a cluster."""
    from shiftproof.registry import UnknownNameError
    from shiftproof.studies import RayCluster

    given = {name: value for name in _RAY_OPTIONS if (value := getattr(options, name)) is not None}
    if options.backend == "ray":
        return RayCluster(**{"gpus_per_run": float(device.startswith("cuda")), **given}, jobs=options.jobs)
    if options.backend != "local":
        raise UnknownNameError("backend", options.backend, ["local", "ray"])
    if given:
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} is an option of --backend ray")
    return _jobs(options, device)


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a study that were given."""
    from shiftproof.studies import Study

    fixed: dict[str, Value] = {}
    batch_size = [] if options.batch_size is None else [("data.batch_size", options.batch_size)]
    for name, value in [*options.fixed, *batch_size]:
        if name in fixed:
            raise ValueError(f"{name} is set twice, to {fixed[name]} and to {value}")
        fixed[name] = value
    given = {field.name: getattr(options, field.name, None) for field in fields(Study)} | {"fixed": fixed or None}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }


def _compare(options: argparse.Namespace) -> int:
    from shiftproof.studies import Study

    return _run_and_report(options, Study(**_fields(options)))


@contextmanager
def _naming_options(options: argparse.Namespace) -> Iterator[None]:
    """Name the option in errors of a field that one gave."""
    from shiftproof.field_error import FieldError

    try:
        yield
    except FieldError as error:
        name = error.field
        if "." in name:  # a hyperparameter
            name = "set" if options.batch_size is None or name != "data.batch_size" else "batch_size"
        raise ValueError(f"--{name.replace('_', '-')}: {error}") from error


def _read_study(options: argparse.Namespace, given: dict[str, Any]) -> Study:
    """Read the study's file, and print what is left out of it."""
    from shiftproof.studies import read_study

    study, skipped = read_study(options.file, options.scale, given)
    for line in skipped:
        print(line)
    return study


def _study_run(options: argparse.Namespace) -> int:
    from shiftproof.studies import naming_lines

    given = _fields(options)
    with _naming_options(options), naming_lines(options.file, options.scale, given):
        study = _read_study(options, given)
        settings = "setting" if study.hparam_trials == 1 else "settings"
        print(f"every method has {study.hparam_trials} {settings} to choose from")
        return _run_and_report(options, study)


def _run_and_report(options: argparse.Namespace, study: Study) -> int:
    from shiftproof.report import write_report
    from shiftproof.studies import as_text, read_results, run_study, time_shares

    output: Path = options.output
    try:
        results = run_study(study, output, _workers(options, study.device), trackers=tuple(options.track))
    except KeyboardInterrupt:
        if (output / "table.csv").exists():
            print(f"written: {write_report(read_results(output), output)}")  # of what there is
        raise
    print(as_text(results))
    print(f"\nwritten: {output / 'table.csv'} and {write_report(results, output)}")
    if getattr(options, "profile", False):
        print("time: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in time_shares(results).items()))
    return 0 if any(row["status"] == "finished" for row in results.rows) else 1


def _study_plan(options: argparse.Namespace) -> int:
    from shiftproof.studies import Store, make_plan, naming_lines, plan_text, study_costs

    given = _fields(options)
    with _naming_options(options), naming_lines(options.file, options.scale, given):
        study = _read_study(options, given)
        plan = make_plan(study, absent=True)
    runs = plan.distinct if options.output is None else Store(options.output).missing(plan)
    print(plan_text(study, plan, study_costs(study, plan, runs), _cores()))
    return 0


def _study_table(options: argparse.Namespace) -> int:
    from shiftproof.registry import UnknownNameError
    from shiftproof.studies import FORMATS, read_results

    if options.format not in FORMATS:
        raise UnknownNameError("format", options.format, list(FORMATS))
    print(FORMATS[options.format](read_results(options.output), options.rule, options.baseline))
    return 0


def _study_report(options: argparse.Namespace) -> int:
    from shiftproof.report import write_report
    from shiftproof.studies import read_results

    print(f"written: {write_report(read_results(options.output), options.output)}")
    return 0


def _study_status(options: argparse.Namespace) -> int:
    from shiftproof.studies import read_status

    print(read_status(options.output).text())
    return 0


def _data_get(options: argparse.Namespace) -> int:
    from shiftproof.data.downloads import SOURCES, get_dataset

    print(SOURCES[options.name].text(), flush=True)
    obtained = get_dataset(options.name, options.output)
    print(obtained.text())
    return 1 if obtained.differences else 0


def _data_check(options: argparse.Namespace) -> int:
    from shiftproof.data.check import check_data

    checked = check_data(options.folder, options.dataset)
    print(checked.text())
    return 0 if checked.ok else 1


def _train(options: argparse.Namespace) -> int:
    from shiftproof.studies import Study, train_one

    study = Study(**{"optimizers": ("genie",), **_fields(options), **_target(options)})
    if len(study.datasets) > 1:
        raise ValueError(f"one run has one data set, not {', '.join(study.datasets)}")
    row = train_one(
        study,
        options.output,
        options.trial_seed,
        options.hparam_seed,
        trackers=tuple(options.track),
        devices=options.devices,
        strategy=options.strategy,
    )
    if row is None:  # torchrun started several of this, of which the first reports
        return 0
    if row["status"] == "failed":
        raise ValueError(f"the run failed: {row['error']}")
    print(f"accuracy on {row['target']}, unseen in training, {row['steps']} steps, protocol {row['protocol']}:")
    for rule, selected in row["selection"].items():
        if selected is not None:  # leave-one-domain-out validation takes more than one run
            print(f"  {rule:16} {100 * selected['accuracy']:5.1f} %  (step {selected['step']})")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from shiftproof.training import check_device, evaluate_folder

    check_device(options.device)
    for domain, score in evaluate_folder(options.run, options.data_dir, options.device).items():
        print(f"{domain}: {100 * score['accuracy']:.1f} % of {score['count']} images")
    return 0


def _shown(result: dict[str, Any], table: str, output: Path | None) -> int:
    """Print what a benchmark measured, and write all of it if there is a file to write to."""
    from shiftproof.files import write_json

    print(table)
    if output is not None:
        write_json(output, result)
    return 0


def _bench_data(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_data, data_table
    from shiftproof.studies import Study

    study = Study(
        datasets=(options.dataset,),
        data_dir=options.data_dir,
        optimizers=("adam",),
        targets=("+".join(options.target),),
        trials=1,
        kind=options.kind,
        model=options.model,
        image_size=options.image_size,
        weights=options.weights,
        fixed={"data.batch_size": options.batch_size},
        precision=options.precision,
        compile=options.compile,
        device=options.device,
    )
    result = bench_data(study, workers=_cores(), steps=options.steps)
    return _shown(result, data_table(result), options.output)


def _bench_optimizer(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_optimizer, optimizer_table

    result = bench_optimizer(options.model, elements=options.elements, device=options.device, rounds=options.rounds)
    return _shown(result, optimizer_table(result), options.output)


def _target(options: argparse.Namespace) -> dict[str, Any]:
    return {"targets": ("+".join(options.target),)} if options.target else {}


def _bench_annealer(options: argparse.Namespace) -> int:
    from shiftproof.bench import annealer_table, bench_annealer
    from shiftproof.studies import Study

    study = Study(**{"optimizers": ("adam",), **_fields(options), **_target(options)})
    result = bench_annealer(study, candidates=options.candidates, rounds=options.rounds)
    return _shown(result, annealer_table(result), options.output)


def _figure_agreement(options: argparse.Namespace) -> int:
    from shiftproof.studies import Study, measure_agreement, write_agreement

    fields = {"optimizers": ("adam",), **_fields(options), "annealers": ("none", options.annealer)}
    if options.annealer == "gga":
        fields["fixed"] = {"annealer.candidates": FIGURE_CANDIDATES, **fields.get("fixed", {})}
    study = Study(**fields, **_target(options))
    measured = measure_agreement(study, options.trial_seed)
    print("written: " + ", ".join(map(str, write_agreement(measured, options.output))))
    return 0


def _figure(options: argparse.Namespace) -> int:
    from shiftproof.studies import Study
    from shiftproof.studies import figures as drawn

    study = Study(**{"trials": 1, **_fields(options)}, **_target(options))
    if len(study.datasets) > 1:
        raise ValueError(f"a figure is of one data set, not {', '.join(study.datasets)}")
    output: Path = options.output
    match options.figure:
        case "sensitivity":
            files = drawn.figure_sensitivity(study, output, _jobs(options, study.device))
        case "embedding":
            files = drawn.figure_embedding(study, output, options.trial_seed, options.method)
        case name:
            files = {
                "balance": drawn.figure_balance,
                "osgr": drawn.figure_osgr,
                "landscape": drawn.figure_landscape,
            }[name](study, output, options.trial_seed)
    print("written: " + ", ".join(map(str, files)))
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    from shiftproof.studies.figures import diagnose
    from shiftproof.training import check_device

    check_device(options.device)
    files = diagnose(
        options.run, options.what, data_dir=options.data_dir, weights=options.weights, device=options.device
    )
    print("written: " + ", ".join(map(str, files)))
    return 0


def _bench_diagnostics(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_diagnostics, diagnostics_table
    from shiftproof.studies import Study

    study = Study(**{"optimizers": ("adam",), **_fields(options), **_target(options)})
    result = bench_diagnostics(study, samples=options.samples, rounds=options.rounds)
    return _shown(result, diagnostics_table(result), options.output)


def _bench_store(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_store, store_table

    result = bench_store(options.runs)
    return _shown(result, store_table(result), options.output)
