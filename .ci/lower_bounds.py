"""Prints the lower bounds of what shiftproof needs, as constraints for pip: `torch>=2.13` as `torch==2.13`."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["bench"]:
    print(requirement.replace(">=", "=="))
