"""Options and output that several benchmarks share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from shiftproof.base.files import write_json
from shiftproof.data import DomainDataset
from shiftproof.studies import Study

SOURCES = 3
"""Source domains of a benchmark that names no target, at most."""


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add the options of a study's data and network."""
    parser.add_argument("--dataset", default="rotated_digits", metavar="NAME", help="data set (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder that holds it")
    parser.add_argument(
        "--target", nargs="+", metavar="DOMAIN", help="domains that are left out (default: all but three)"
    )
    parser.add_argument("--model", metavar="NAME", help="network (default: a small one)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights to start from (default: random ones)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the model's)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per source domain and step")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="device that computes (default: %(default)s)")


def study_of(options: argparse.Namespace) -> Study:
    """Return the study that the options of `add_study` describe, with one method.

    Raises:
        ValueError: a field cannot have its value.
    """
    return Study(
        datasets=(options.dataset,),
        data_dir=options.data_dir,
        optimizers=("adam",),
        targets=None if options.target is None else ("+".join(options.target),),
        model=options.model,
        weights=options.weights,
        image_size=options.image_size,
        fixed={} if options.batch_size is None else {"data.batch_size": options.batch_size},
        device=options.device,
    )


def with_target(study: Study, data: DomainDataset) -> Study:
    """Return a study that names its target: one without leaves out all domains but three, or one of up to three."""
    if study.targets is not None:
        return study
    return replace(study, targets=("+".join(data.domain_names[:-SOURCES] or data.domain_names[:1]),))


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option of the file that the numbers are written to."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write all numbers, as JSON")


def show(result: dict[str, Any], table: str, output: Path | None) -> None:
    """Print what a benchmark measured, and write all of it if there is a file to write to."""
    print(table)
    if output is not None:
        write_json(output, result)
