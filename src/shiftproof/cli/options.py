"""Options that several commands share, the types of their values, and how help texts show defaults."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from shiftproof.studies import default_text


def add_option(parser: argparse._ActionsContainer, *names: str, help: str, none: str = "", **how: Any) -> None:  # noqa: A002
    """Add an option whose help ends with its default; ``none`` describes a default of None."""
    parser.add_argument(*names, help=with_default(help, how.get("default"), none), **how)


def with_default(text: str, default: Any, none: str = "") -> str:
    """Return a help text that ends with the default, escaped for argparse."""
    shown = default_text(default, none)
    return (f"{text} (default: {shown})" if shown else text).replace("%", "%%")


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add the option --device to a command that takes no study."""
    add_option(parser, "--device", default="cpu", metavar="DEVICE", help="device that computes: cpu, cuda, cuda:1, ...")


def add_trial_seed(parser: argparse._ActionsContainer) -> None:
    """Add the option --trial-seed."""
    add_option(
        parser, "--trial-seed", type=int, default=0, metavar="N", help="number of the trial, which seeds the run"
    )


def add_trackers(parser: argparse._ActionsContainer) -> None:
    """Add the option --track."""
    add_option(
        parser, "--track", nargs="+", default=[], none="none", metavar="NAME",
        help="trackers that receive the curves as well: tensorboard, mlflow or wandb",
    )  # fmt: skip


def add_jobs(parser: argparse._ActionsContainer, none: str = "one per core; 1 on a GPU") -> None:
    """Add the option --jobs."""
    add_option(parser, "--jobs", type=int, none=none, metavar="N", help="number of runs trained at a time")


def path(text: str) -> Path:
    """Return a path on this machine."""
    if not text:  # from an unset shell variable, perhaps; Path would make it the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def place(text: str) -> Path:
    """Return a path, or an address on an object store."""
    from shiftproof.base.files import output_path

    path(text)
    try:
        return output_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def study_file(text: str) -> Path:
    """Return the file of a study, given by its name or its path."""
    from shiftproof.studies import study_path

    try:
        return study_path(str(path(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def folder(text: str) -> Path:
    """Return a folder on this machine."""
    return _local(text, "folder")


def file(text: str) -> Path:
    """Return a file on this machine."""
    return _local(text, "file")


def _local(text: str, what: str) -> Path:
    if "://" in text and not text.startswith("file://"):  # before an error about the object store's package
        raise argparse.ArgumentTypeError(f"expected a {what} on this machine, not {text}")
    return place(text)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(options: argparse.Namespace, device: str) -> int:
    """Return how many runs to train at a time.

    Raises:
        ValueError: the number is not above 0.
    """
    given: int = options.jobs if options.jobs is not None else cores() if device == "cpu" else 1
    if given < 1:
        raise ValueError(f"jobs must be a whole number above 0, not {given}")
    return given
