"""What options of several commands have in common: the types of their values, and how their defaults are shown."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from shiftproof.studies import default_text


def add_option(parser: argparse._ActionsContainer, *names: str, help: str, none: str = "", **how: Any) -> None:  # noqa: A002
    """Add an option whose help ends in its default; ``none`` says what is done where that is None."""
    parser.add_argument(*names, help=with_default(help, how.get("default"), none), **how)


def with_default(text: str, default: Any, none: str = "") -> str:
    """Return a help text with a default, as argparse takes it."""
    shown = default_text(default, none)
    return (f"{text} (default: {shown})" if shown else text).replace("%", "%%")


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add the device of a command that takes no study."""
    add_option(parser, "--device", default="cpu", metavar="DEVICE", help="device that computes: cpu, cuda, cuda:1, ...")


def add_trial_seed(parser: argparse._ActionsContainer) -> None:
    """Add the number of a trial."""
    add_option(parser, "--trial-seed", type=int, default=0, metavar="N", help="number of the trial")


def add_trackers(parser: argparse._ActionsContainer) -> None:
    """Add where curves are written besides the run's own files."""
    add_option(
        parser, "--track", nargs="+", default=[], none="none", metavar="NAME",
        help="trackers that the curves are written to as well: tensorboard, mlflow or wandb",
    )  # fmt: skip


def add_jobs(parser: argparse._ActionsContainer, none: str = "one per core; 1 on a GPU") -> None:
    """Add the number of runs at a time."""
    add_option(parser, "--jobs", type=int, none=none, metavar="N", help="runs at a time")


def path(text: str) -> Path:
    """Return a path of this machine."""
    if not text:  # of a variable that is not set; it would be the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def place(text: str) -> Path:
    """Return a path, or an address of an object store."""
    from shiftproof.base.files import output_path

    path(text)
    try:
        return output_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def folder(text: str) -> Path:
    """Return a folder of this machine."""
    return _local(text, "folder")


def file(text: str) -> Path:
    """Return a file of this machine."""
    return _local(text, "file")


def _local(text: str, what: str) -> Path:
    if "://" in text and not text.startswith("file://"):  # said first, whether its package is installed or not
        raise argparse.ArgumentTypeError(f"this takes a {what} of this machine, not {text}")
    return place(text)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(options: argparse.Namespace, device: str) -> int:
    """Return how many runs are trained at a time.

    Raises:
        ValueError: the number is not above 0.
    """
    given: int = options.jobs if options.jobs is not None else cores() if device == "cpu" else 1
    if given < 1:
        raise ValueError(f"jobs must be a whole number above 0, not {given}")
    return given
