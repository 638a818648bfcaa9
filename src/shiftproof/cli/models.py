"""The commands that use the model of a run: evaluate, predict, export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftproof.cli.options import add_device, add_option, path, place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shiftproof.cli.command import Command, Commands
    from shiftproof.training import Prediction, SavedModel


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser("evaluate", help="score a run's model on a folder of images", add=_add_evaluate, run=_evaluate)
    commands.add_parser(
        "predict",
        help="predict with a run's model",
        description="Predict with a run's model for pictures, or for the rows of a table.",
        add=_add_predict,
        run=_predict,
    )
    commands.add_parser(
        "export",
        help="write a run's model as a program of torch.export or ONNX",
        description="Write a run's model as a program that runs without shiftproof, and check what it computes.",
        add=_add_export,
        run=_export,
    )


def _add_run(parser: Command) -> None:
    parser.add_argument("run", type=place, metavar="RUN", help="the run's folder")


def _add_evaluate(parser: Command) -> None:
    _add_run(parser)
    parser.add_argument(
        "--data-dir",
        type=path,
        required=True,
        metavar="DIR",
        help="folder of images: <class>/<image> or <domain>/<class>/<image>; with --labels, of any form",
    )
    parser.add_argument(
        "--labels",
        type=path,
        metavar="FILE",
        help="CSV file of the images' classes: its first line is file,class; a file is named from DIR",
    )
    add_device(parser)


def _add_predict(parser: Command) -> None:
    _add_run(parser)
    parser.add_argument(
        "inputs",
        type=path,
        nargs="+",
        metavar="INPUT",
        help="pictures and folders, in which pictures are looked for at any depth; for a model of vectors, a table: "
        ".csv or .parquet with the columns that the model was trained on",
    )
    add_option(
        parser, "--output", type=place, none="CSV on the standard output", metavar="FILE",
        help="file for the predictions: .csv, .json or .parquet",
    )  # fmt: skip
    add_device(parser)
    add_option(parser, "--batch-size", type=int, default=64, metavar="N", help="number of inputs in a forward pass")


def _add_export(parser: Command) -> None:
    _add_run(parser)
    parser.add_argument("--output", type=place, required=True, metavar="FILE", help="the program: .pt2 or .onnx")
    add_option(
        parser, "--format", dest="export_format", none="that of the file's suffix", metavar="NAME",
        help="torch (torch.export) or onnx",
    )  # fmt: skip


def _evaluate(options: argparse.Namespace) -> int:
    from shiftproof.training import check_device, evaluate_folder, evaluate_labelled

    check_device(options.device)
    unlabelled = 0
    if options.labels is None:
        scores = evaluate_folder(options.run, options.data_dir, options.device)
    else:
        scores, unlabelled = evaluate_labelled(options.run, options.data_dir, options.labels, options.device)
    for domain, score in scores.items():
        print(f"{domain}: {100 * score['accuracy']:.1f} % of {score['count']} images")
    if unlabelled:
        print(f"{unlabelled} images have no label in {options.labels} and were left out")
    for domain, score in scores.items():
        print(f"measures of {domain}: {_measures_text(score['measures'])}")
    return 0


def _measures_text(measures: dict[str, float | None]) -> str:
    from shiftproof.protocol import Unit

    shown = []
    for name, value in measures.items():
        if value is None:
            shown.append(f"{name} undefined")
        else:
            unit = Unit.of(name, value)
            shown.append(f"{name} {unit.text(value)}{' %' if unit.percent else ''}")
    return ", ".join(shown)


def _predict(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from shiftproof.training import (
        as_row,
        check_device,
        check_prediction_file,
        csv_lines,
        load,
        write_predictions,
    )

    output: Path | None = options.output
    if options.batch_size < 1:
        raise ValueError(f"the batch size must be a whole number above 0, not {options.batch_size}")
    if output is not None:
        check_prediction_file(output)
    check_device(options.device)
    model = load(options.run).to(options.device)
    _check_batch(model, options.batch_size)
    predictions, count, unit = _predictions(model, options.inputs, options.batch_size)
    failed = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal failed
        hidden = output is None and sys.stdout.isatty()  # the bar would run through the lines
        with tqdm(total=count, desc="predictions", unit=unit, disable=hidden) as bar:
            for prediction in predictions:
                if prediction.error is not None:
                    failed += 1
                    tqdm.write(f"shiftproof: {_place(options.inputs, prediction)}: {prediction.error}", file=sys.stderr)
                yield as_row(model, prediction)
                bar.update()

    if output is None:
        for line in csv_lines(model, rows()):
            print(line, end="")
    else:
        write_predictions(model, list(rows()), output)
        print(f"written: {output}")
    if failed:
        print(f"shiftproof: {failed} of {count} {unit}s have no prediction", file=sys.stderr)
    return 1 if failed else 0


def _check_batch(model: SavedModel, batch_size: int) -> None:
    """Say that predictions depend on the batch, if they do, and refuse another batch than that of evaluate then."""
    from shiftproof.training import EVALUATION_BATCH

    if not model.transductive:
        return
    text = f"predictions of {model.algorithm} depend on the inputs beside them: {EVALUATION_BATCH} together, in order"
    if batch_size != EVALUATION_BATCH:
        raise ValueError(f"{text}; --batch-size must be {EVALUATION_BATCH}")
    print(f"shiftproof: {text}; give one domain at a time", file=sys.stderr)


def _predictions(model: SavedModel, inputs: Sequence[Path], batch_size: int) -> tuple[Iterator[Prediction], int, str]:
    """Return the predictions for inputs, how many there will be, and of what each is.

    Raises:
        ValueError: an input is not what the model takes, or is missing or empty.
    """
    from shiftproof.data import TABLE_SUFFIXES, pictures_below
    from shiftproof.training import predict_pictures, predict_rows, read_rows

    if missing := [str(one) for one in inputs if not one.exists()]:
        raise FileNotFoundError(f"no such file or folder: {', '.join(missing)}")
    tables = [one for one in inputs if one.is_file() and one.suffix.lower() in TABLE_SUFFIXES]
    if model.network.normalisation is not None:
        if tables:
            raise ValueError(f"the model takes pictures, and {tables[0]} is a table")
        paths = [path for one in inputs for path in (pictures_below(one) if one.is_dir() else [one])]
        return predict_pictures(model, paths, batch_size), len(paths), "picture"
    if tables != list(inputs) or len(inputs) > 1:
        raise ValueError(f"the model takes the rows of a table: give one file of {', '.join(TABLE_SUFFIXES)}")
    rows = read_rows(model, tables[0])
    return predict_rows(model, rows, batch_size), len(rows.vectors), "row"


def _place(inputs: Sequence[Path], prediction: Prediction) -> str:
    source = prediction.source
    return f"{inputs[0]}, row {source}" if isinstance(source, int) else str(source)


def _export(options: argparse.Namespace) -> int:
    from shiftproof.training import export_format, export_model, load

    output: Path = options.output
    form = export_format(output, options.export_format)
    model = load(options.run)
    difference = export_model(model, output, form)
    print(f"largest difference of an output from the model's, on random inputs: {difference:.1e}")
    if model.transductive:
        print(f"outputs of {model.algorithm} depend on the inputs beside them in a batch")
    print(f"written: {output}")
    return 0
