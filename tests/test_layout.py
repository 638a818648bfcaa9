"""What the folders of the package are to each other: nobody imports past a folder's face."""

import ast
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FACELESS = {"shiftproof.base": "its modules stand alone: the command line needs some of them before torch is loaded"}
"""Folders whose modules are imported themselves, with the reason."""


def _path(module: str) -> Path:
    folder = SOURCE / module.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _is_folder(module: str) -> bool:
    return (SOURCE / module.replace(".", "/")).is_dir()


def _folder(module: str) -> str:
    return module if _is_folder(module) else module.rpartition(".")[0]


def _face(folder: str) -> set[str]:
    """Return the names that a folder shows: its `__all__`, or without one what its `__init__` defines."""
    statements = ast.parse(_path(folder).read_text(encoding="utf-8")).body
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=names):
                return set(ast.literal_eval(names))
    return {statement.name for statement in statements if isinstance(statement, ast.FunctionDef | ast.ClassDef)}


def _around(importer: str) -> set[str]:
    """Return the folder that a module lies in, and those around it."""
    parts = _folder(importer).split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def past_faces(importer: str, code: str) -> list[str]:
    """Return a line for every import that reaches into a folder which the importer does not lie in."""
    found = []
    for statement in ast.walk(ast.parse(code)):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            imports = [(statement.module, alias.name) for alias in statement.names]
        elif isinstance(statement, ast.Import):
            imports = [(alias.name, "") for alias in statement.names]
        else:
            continue
        for module, name in imports:
            whole = f"{module}.{name}".rstrip(".")
            if not whole.startswith("shiftproof.") or _folder(module) in _around(importer) | FACELESS.keys():
                continue
            if not _is_folder(module) or (name and name not in _face(module) and not _is_folder(whole)):
                found.append(f"{importer}, line {statement.lineno}: {whole}")
    return found


def test_nobody_imports_past_a_folders_face():
    offenders = []
    for path in sorted((SOURCE / "shiftproof").rglob("*.py")):
        importer = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        offenders += past_faces(importer, path.read_text(encoding="utf-8"))
    assert offenders == []


@pytest.mark.parametrize(
    ("importer", "code", "past"),
    [
        ("shiftproof.training.build", "from shiftproof.optim import GENIE", False),
        ("shiftproof.training.build", "from shiftproof.optim.genie import FORMS", False),  # a folder has a face too
        ("shiftproof.training.build", "from shiftproof.training.spec import RunSpec", False),
        ("shiftproof.training.ranks.split", "from shiftproof.training.averaging import State", False),
        ("shiftproof.training.build", "from shiftproof.base.files import write_json", False),
        ("shiftproof.cli", "from shiftproof import figures", False),
        ("shiftproof.training.build", "from shiftproof.optim.genie.optimizer import GENIE", True),
        ("shiftproof.training.build", "from shiftproof.training.ranks.split import ALONE", True),
        ("shiftproof.training.build", "from shiftproof.optim import stream", True),  # a module, by way of the face
        ("shiftproof.training.build", "def build():\n    import shiftproof.optim.stream", True),
    ],
)
def test_the_check_knows_a_face(importer, code, past):
    assert bool(past_faces(importer, code)) == past


def test_places_that_the_changes_name_are_there():
    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    places = set(re.findall(r"(?<!from )(?<!of the group )`(shiftproof\.[\w.]+)", text))
    assert "shiftproof.base.choices" in places
    for place in places:
        resolve_name(place)


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, "tables") for name in ("FORMATS", "Table", "as_csv", "as_latex", "as_markdown", "as_text", "build_tables")]
    + [(name, "figures") for name in ("measure_agreement", "write_agreement")],
)
def test_names_that_left_studies_can_still_be_imported_from_there(name, place):
    with pytest.warns(DeprecationWarning, match=rf"{name} has moved: import it from shiftproof\.{place}"):
        moved = getattr(import_module("shiftproof.studies"), name)
    assert moved is getattr(import_module(f"shiftproof.{place}"), name)
