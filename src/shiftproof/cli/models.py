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


_OF_DATA = {"folder": ("labels",), "table": ("label", "domain", "image")}
"""Options of `evaluate` that go with a folder, and with a table."""


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser(
        "evaluate",
        help="score a run's model on a folder of images or a table",
        description="Score a run's model on a folder of images, or on the rows of a table.",
        add=_add_evaluate,
        run=_evaluate,
    )
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
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--data-dir",
        type=path,
        metavar="DIR",
        help="folder of images: <class>/<image> or <domain>/<class>/<image>; with --labels, of any form",
    )
    data.add_argument(
        "--metadata",
        type=path,
        metavar="FILE",
        help="table: .csv or .parquet with the columns that the model was trained on, or of picture files, and a label",
    )
    folder = parser.add_argument_group("folder")
    folder.add_argument(
        "--labels",
        type=path,
        metavar="FILE",
        help="CSV file of the images' classes: its first line is file,class; a file is named from DIR",
    )
    table = parser.add_argument_group("table")
    table.add_argument(
        "--label",
        nargs="+",
        metavar="COLUMN",
        help="column of the class or the quantity; of a model of several labels, the columns of all",
    )
    add_option(
        table, "--domain", none="none: all rows are one domain", metavar="COLUMN",
        help="column that names the domain of a row",
    )  # fmt: skip
    add_option(
        table, "--image", none="none", metavar="COLUMN",
        help="column of picture files, named from the table's folder, for a model of pictures",
    )  # fmt: skip
    add_option(
        table, "--missing-labels", default="error", choices=("error", "drop"),
        help="rows without a label: error ends with the first one, drop leaves them out",
    )  # fmt: skip
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
    from shiftproof.training import check_device, evaluate_folder, evaluate_labelled, evaluate_table

    check_device(options.device)
    place, other = ("folder", "table") if options.metadata is None else ("table", "folder")
    for name in _OF_DATA[other]:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is of a {other}, and a {place} is given")
    left_out, what = 0, "images"
    if options.metadata is not None:
        if options.label is None:
            raise ValueError("name the column of the labels in the table: --label COLUMN")
        what = "rows"
        scores, left_out = evaluate_table(
            options.run,
            options.metadata,
            labels=options.label,
            domain=options.domain,
            image=options.image,
            missing_labels=options.missing_labels,
            device=options.device,
        )
    elif options.labels is None:
        scores = evaluate_folder(options.run, options.data_dir, options.device)
    else:
        scores, left_out = evaluate_labelled(options.run, options.data_dir, options.labels, options.device)
    for domain, score in scores.items():
        print(f"{domain}: {_headline(score)} of {score['count']} {what}")
    if left_out:
        print(f"{left_out} {what} have no label in {options.metadata or options.labels} and were left out")
    for domain, score in scores.items():
        print(f"measures of {domain}: {_measures_text(score['measures'])}")
    return 0


def _headline(score: dict[str, Any]) -> str:
    """Return the accuracy, or the first measure of another task than classification."""
    from shiftproof.protocol import Unit

    name, value = next(iter(score["measures"].items()))
    return Unit.of(name, value or 0.0).with_unit(value)


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
