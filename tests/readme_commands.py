"""The README's commands, and the table of patients that they are about."""

import shlex
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"
SHORT = {"compare": ["--trials", "1", "--steps", "4"]}
"""What makes a command quick, by its name: the README's own take minutes."""


def commands() -> list[list[str]]:
    """Return the README's commands, one a line of its blocks, as arguments."""
    outside_of_code = "".join(README.read_text(encoding="utf-8").split("```")[::2])
    return [shlex.split(line, comments=True) for line in outside_of_code.splitlines() if line.startswith("    ")]


def shiftproof_commands() -> list[list[str]]:
    """Return the arguments of the README's shiftproof commands, made quick."""
    own = [arguments for program, *arguments in commands() if program == "shiftproof"]
    return [[*arguments, *SHORT.get(arguments[0], [])] for arguments in own]


def write_patients(folder: Path) -> None:
    """Write `patients.csv`: 40 patients of each of three hospitals."""
    random = np.random.default_rng(0)
    rows = ["hospital,age,pressure,smokes,ill"]
    for hospital in ("north", "south", "west"):
        for age, pressure, smokes in zip(
            random.integers(20, 90, 40), random.normal(120, 15, 40), random.choice(["yes", "no"], 40), strict=True
        ):
            rows.append(f"{hospital},{age},{pressure:.1f},{smokes},{int(age + pressure > 175)}")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
