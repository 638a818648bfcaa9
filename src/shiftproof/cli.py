"""The command line: parses and calls the library."""

from __future__ import annotations

import argparse
import ast
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftproof import __version__

if TYPE_CHECKING:
    from shiftproof.studies import Study

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for bad input or a failure, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"shiftproof: warning: {message}\n"  # no line of our code
    try:
        status: int = options.command(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"shiftproof: error: {error}", file=sys.stderr)
        return 1
    return status


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
    compare.add_argument("--algorithms", nargs="+", default=["erm"], metavar="NAME")
    compare.add_argument("--optimizers", nargs="+", default=["sgd", "adam", "sam", "genie"], metavar="NAME")
    compare.add_argument(
        "--targets",
        nargs="+",
        metavar="DOMAIN",
        help="left out one by one, A+B together (default: each in turn)",
    )
    compare.add_argument("--trials", type=int, default=3, metavar="N", help="trial seeds (default: 3)")
    compare.add_argument(
        "--hparam-trials", type=int, default=1, metavar="N",
        help="settings that every method chooses from by validation on the sources; setting 0 is its default",
    )  # fmt: skip
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: cores; 1 on a GPU)")
    compare.add_argument("--output", type=Path, default=Path("runs/compare"), metavar="DIR")
    compare.add_argument("--profile", action="store_true", help="print how the runs spent their time")
    compare.set_defaults(command=_compare)

    train = commands.add_parser("train", help="one run", description="Train one run, leaving domains out.")
    _add_run_options(train)
    train.add_argument("--algorithm", default="erm", metavar="NAME")
    train.add_argument("--optimizer", default="genie", metavar="NAME")
    train.add_argument("--target", nargs="+", required=True, metavar="DOMAIN", help="the domains left out")
    train.add_argument("--trial-seed", type=int, default=0, metavar="N")
    train.add_argument("--hparam-seed", type=int, default=0, metavar="N", help="setting; 0 is the default")
    train.add_argument("--output", type=Path, required=True, metavar="RUN", help="the run's folder")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="score a run's model on a folder of images")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    evaluate.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="<class>/<image> or <domain>/<class>/<image>",
    )
    evaluate.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    evaluate.set_defaults(command=_evaluate)

    bench = commands.add_parser("bench", help="measure what runs cost").add_subparsers(required=True, metavar="what")
    data = bench.add_parser("data", help="time the data path against the usual one")
    data.add_argument("--dataset", default="folder", metavar="NAME", help="of image files (default: folder)")
    data.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder of the data set")
    data.add_argument("--target", nargs="+", required=True, metavar="DOMAIN", help="the domains left out")
    data.add_argument("--model", default="resnet18", metavar="NAME", help="(default: resnet18)")
    data.add_argument("--weights", type=Path, metavar="FILE", help="weights to start from: safetensors or torch")
    data.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the model's)")
    data.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per source domain (default: 32)")
    data.add_argument("--steps", type=int, default=20, metavar="N", help="steps timed per round (default: 20)")
    data.add_argument("--output", type=Path, metavar="FILE", help="where to write all numbers, as JSON")
    data.set_defaults(command=_bench_data)
    optimizer = bench.add_parser("optimizer", help="time the step of every optimizer beside fused AdamW")
    optimizer.add_argument("--model", default="resnet18", metavar="NAME", help="whose parameters (default: resnet18)")
    optimizer.add_argument("--elements", type=int, metavar="N", help="one tensor of so many elements instead")
    optimizer.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    optimizer.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each (default: 15)")
    optimizer.add_argument("--output", type=Path, metavar="FILE", help="where to write all numbers, as JSON")
    optimizer.set_defaults(command=_bench_optimizer)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train` and `compare` share."""
    parser.add_argument("--dataset", default="rotated_digits", metavar="NAME", help="(default: rotated_digits)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the data set, unless embedded")
    parser.add_argument(
        "--search", default="short", metavar="NAME", help="short (default) or protocol: defaults and ranges"
    )
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="updates (default: 300)")
    parser.add_argument(
        "--checkpoint-freq", type=int, metavar="N", help="steps between evaluations (default: steps / 5)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per source domain and step")
    parser.add_argument("--model", default="small_conv", metavar="NAME", help="(default: small_conv)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights to start from: safetensors or torch")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side of the images (photographs: the model's)"
    )
    parser.add_argument(
        "--split", default="random", metavar="NAME",
        help="random (default, DomainBed's) or grouped: drawings of one photograph stay on one side",
    )  # fmt: skip
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="parts to split a batch into")
    parser.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of the gradient")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--set", action="append", default=[], dest="fixed", metavar="AXIS.NAME=VALUE", type=_assignment,
        help="fix a hyperparameter for all methods, as in optimizer.lr=0.03; may be repeated",
    )  # fmt: skip


def _assignment(text: str) -> tuple[str, bool | int | float | str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form axis.name=value")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value
    if not isinstance(parsed, (bool, int, float, str)):
        raise argparse.ArgumentTypeError(f"the value of '{text}' is neither a number nor a word")
    return name, parsed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _study(options: argparse.Namespace, **entries: Any) -> Study:
    from shiftproof.studies import Study

    fixed = dict(options.fixed)
    if options.batch_size is not None:
        fixed["data.batch_size"] = options.batch_size
    return Study(
        dataset=options.dataset,
        data_dir=options.data_dir,
        search=options.search,
        steps=options.steps,
        checkpoint_freq=options.checkpoint_freq,
        model=options.model,
        image_size=options.image_size,
        split=options.split,
        weights=options.weights,
        fixed=fixed,
        accumulate=options.accumulate,
        clip_norm=options.clip_norm,
        precision=options.precision,
        device=options.device,
        **entries,
    )


def _compare(options: argparse.Namespace) -> int:
    from shiftproof.report import write_report
    from shiftproof.studies import Store, run_study, time_shares

    jobs = options.jobs
    if jobs is None:
        jobs = _cores() if options.device == "cpu" else 1
    if jobs < 1:
        raise ValueError(f"jobs must be a whole number above 0, not {jobs}")
    study = _study(
        options,
        algorithms=tuple(options.algorithms),
        optimizers=tuple(options.optimizers),
        targets=None if options.targets is None else tuple(options.targets),
        trials=options.trials,
        hparam_trials=options.hparam_trials,
    )
    try:
        table = run_study(study, options.output, jobs)
    except KeyboardInterrupt:
        if (options.output / "table.csv").exists():
            print(f"written: {write_report(study, options.output)}")  # of what there is
        raise
    print(table.text())
    print(f"\nwritten: {options.output / 'table.csv'} and {write_report(study, options.output)}")
    if options.profile:
        shares = time_shares(Store(options.output), study.runs)
        print("time: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items()))
    return 0 if any(row.seconds is not None for row in table.rows) else 1


def _train(options: argparse.Namespace) -> int:
    from shiftproof.studies import train_one

    study = _study(
        options,
        algorithms=(options.algorithm,),
        optimizers=(options.optimizer,),
        targets=("+".join(options.target),),
    )
    row = train_one(study, options.output, options.trial_seed, options.hparam_seed)
    if row["status"] == "failed":
        raise ValueError(f"the run failed: {row['error']}")
    print(f"accuracy on {row['target']}, unseen in training, {row['steps']} steps, protocol {row['protocol']}:")
    for rule, selected in row["selection"].items():
        print(f"  {rule:16} {100 * selected['accuracy']:5.1f} %  (step {selected['step']})")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from shiftproof.training import check_device, evaluate_folder

    check_device(options.device)
    for domain, score in evaluate_folder(options.run, options.data_dir, options.device).items():
        print(f"{domain}: {100 * score['accuracy']:.1f} % of {score['count']} images")
    return 0


def _bench_data(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_data, data_table
    from shiftproof.files import write_json
    from shiftproof.studies import Study

    study = Study(
        dataset=options.dataset,
        data_dir=options.data_dir,
        optimizers=("adam",),
        targets=("+".join(options.target),),
        trials=1,
        model=options.model,
        image_size=options.image_size,
        weights=options.weights,
        fixed={"data.batch_size": options.batch_size},
    )
    result = bench_data(study, workers=_cores(), steps=options.steps)
    print(data_table(result))
    if options.output is not None:
        write_json(options.output, result)
    return 0


def _bench_optimizer(options: argparse.Namespace) -> int:
    from shiftproof.bench import bench_optimizer, optimizer_table
    from shiftproof.files import write_json

    result = bench_optimizer(options.model, elements=options.elements, device=options.device, rounds=options.rounds)
    print(optimizer_table(result))
    if options.output is not None:
        write_json(options.output, result)
    return 0
