"""The commands that draw the papers' figures: figure agreement, balance, osgr, embedding, landscape, sensitivity."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftproof.cli.fields import add_fields, given_fields, study_of
from shiftproof.cli.options import add_jobs, add_option, add_trial_seed, folder, jobs

if TYPE_CHECKING:
    from shiftproof.cli.command import Command, Commands

FIGURE_CANDIDATES = 25
"""Candidates of GGA's search in a figure, unless fixed by hand: a tenth of the published number, to take a minute."""
_NONE = {"targets": "the first"}
_TRACED = {
    "balance": "draw how evenly updates are spread over the parameters",
    "osgr": "draw the one-step generalization ratio over training",
    "embedding": "draw the features before and after training",
    "landscape": "draw where optimizers end on a simulated landscape, and the paths of real runs",
}


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    commands.add_parser("figure", help="draw the papers' figures", add=_add_figures)


def _add_figures(parser: Command) -> None:
    commands = parser.add_commands("what")
    commands.add_parser(
        "agreement",
        help="draw how similar the domains' gradients are over training, without and with an annealer",
        add=_add_agreement,
        run=_agreement,
    )
    for name, what in _TRACED.items():
        commands.add_parser(name, help=what, add=partial(_add_traced, name=name), run=partial(_traced, name=name))
    commands.add_parser(
        "sensitivity", help="draw accuracy against the hyperparameters", add=_add_sensitivity, run=_sensitivity
    )


def _add_agreement(parser: Command) -> None:
    defaults = {"optimizers": ("adam",), "annealers": ("gga",)}
    add_fields(parser, "figure agreement", defaults=defaults, none=_NONE)
    add_trial_seed(parser)
    _add_output(parser, Path("runs/agreement"))


def _add_traced(parser: Command, name: str) -> None:
    add_fields(parser, f"figure {name}", none=_NONE)
    add_trial_seed(parser)
    if name == "embedding":
        default = "umap if umap-learn is installed, else pca"
        add_option(parser, "--method", none=default, metavar="NAME", help="projection to the plane: pca or umap")
    _add_output(parser, Path("runs/figures"))


def _add_sensitivity(parser: Command) -> None:
    add_fields(parser, "figure sensitivity", defaults={"trials": 1}, none=_NONE)
    add_jobs(parser)
    _add_output(parser, Path("runs/figures"))


def _add_output(parser: Command, default: Path) -> None:
    add_option(parser, "--output", type=folder, default=default, metavar="DIR", help="folder to write the figures to")


def _agreement(options: argparse.Namespace) -> int:
    from shiftproof.figures import measure_agreement, write_agreement

    given = given_fields(options)
    [annealer] = given.get("annealers", options.taken.defaults["annealers"])
    candidates = {"annealer.candidates": FIGURE_CANDIDATES} if annealer == "gga" else {}
    study = study_of(
        options,
        annealers=("none", annealer),
        fixed={**candidates, **given.get("fixed", {})},
    )
    return _written(write_agreement(measure_agreement(study, options.trial_seed), options.output))


def _traced(options: argparse.Namespace, name: str) -> int:
    from shiftproof import figures

    study = study_of(options)
    if name == "embedding":
        return _written(figures.figure_embedding(study, options.output, options.trial_seed, options.method))
    draw = {
        "balance": figures.figure_balance,
        "osgr": figures.figure_osgr,
        "landscape": figures.figure_landscape,
    }[name]
    return _written(draw(study, options.output, options.trial_seed))


def _sensitivity(options: argparse.Namespace) -> int:
    from shiftproof import figures

    study = study_of(options)
    return _written(figures.figure_sensitivity(study, options.output, jobs(options, study.device)))


def _written(files: list[Path]) -> int:
    print("written: " + ", ".join(map(str, files)))
    return 0
