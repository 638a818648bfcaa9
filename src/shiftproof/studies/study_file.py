"""Study files: studies in YAML at the paper's scale and at smaller ones. Errors name the line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from shiftproof.base.field_error import FieldError
from shiftproof.base.files import with_home
from shiftproof.base.hparams import Value, parse_truth, parse_value
from shiftproof.base.plugins import PluginError, import_plugins
from shiftproof.base.registry import UnknownNameError
from shiftproof.protocol import applies, hyperparameters, known_names, unknown_hyperparameter
from shiftproof.studies.checks import check_name
from shiftproof.studies.study import Study, Variant, field_types

Scale = Literal["paper", "small", "smoke"]
SCALES: tuple[Scale, ...] = ("paper", "small", "smoke")
"""The scales of a study's file."""

_FIELDS = field_types()
_METHODS = ("algorithms", "optimizers", "annealers")
_SMOKE: Mapping[str, Any] = {
    "datasets": ("rotated_digits",),
    "data_dir": None,
    "metadata": None,
    "domain": None,
    "labels": (),
    "task": None,
    "features": (),
    "image": None,
    "group": None,
    "id": None,
    "missing_labels": "error",
    "kind": None,
    "model": "small_conv",
    "search": "short",
    "protocol": "shiftproof",
    "weights": None,
    "class_vectors": None,
    "normalisation": None,
    "image_size": None,
}
"""The fields that the smoke scale always sets, so that it needs no file but the study's."""


_ONE_OR_SEVERAL = ("averaging",)
"""The fields that held one value before they held several: a file may give either."""


class StudyFileError(ValueError):
    """A study file cannot be read or does not describe a valid study; the message names the file and the line."""


class _Pair(NamedTuple):
    """A key of a mapping and its value."""

    key: yaml.Node
    value: yaml.Node


class _Entry(NamedTuple):
    """The value of a field, with the nodes of the key that set it and of the value."""

    value: Any
    key: yaml.Node
    node: yaml.Node


_Entries = dict[str, _Entry]


def read_study(path: Path, scale: Scale = "paper", overrides: Mapping[str, Any] = {}) -> tuple[Study, list[str]]:
    """Read a study file.

    The top level of the file is the study at the paper's scale, and `scales` changes some of its fields. The smoke
    scale always runs a small network on the embedded digits. Unknown names are errors in every scale of the file, even
    in one that is not asked for. Variants that fit none of the study's methods are left out.

    Args:
        path: the file.
        scale: the scale to read.
        overrides: fields from the command line, which replace the file's; names that they replace are not checked, and
            none of them is left out. Variants may be given by their names in the file; hyperparameters are fixed, and
            plug-ins imported, in addition to the file's.

    Returns:
        The study, and one line for every variant that was left out.

    Raises:
        StudyFileError: the file does not exist, is not YAML or does not describe a valid study.
        FieldError: an override is invalid, by itself or together with the file.
    """
    scales = _scales(path)
    _check_names(scales, overrides)
    entries = _entries_of(path, scales, scale)
    given = {**(_SMOKE if scale == "smoke" else {}), **overrides}
    if "variants" in given:
        given["variants"] = _chosen(given["variants"], entries)
    if "fixed" in given and "fixed" in entries:
        given["fixed"] = {**entries["fixed"].value, **given["fixed"]}
    if "imports" in given and "imports" in entries:
        given["imports"] = (*entries["imports"].value, *given["imports"])
    written, entries = entries, {name: entry for name, entry in entries.items() if name not in given}
    skipped = _leave_out_variants(entries, given)
    try:
        return Study(**_values(entries), **given), skipped
    except FieldError as error:
        raise _placed(error, path, written, overrides) from error
    except ValueError as error:
        raise StudyFileError(f"{path}: {error}") from error


@contextmanager
def naming_lines(path: Path, scale: Scale, overrides: Mapping[str, Any]) -> Iterator[None]:
    """Name the file's line in errors of a field that show only after the data are opened.

    The arguments are those of `read_study`.

    Raises:
        StudyFileError: a `FieldError` was raised inside, for a field that the file sets.
        FieldError: one was raised inside, for an override.
    """
    try:
        yield
    except FieldError as error:
        raise _placed(error, path, _entries_of(path, _scales(path), scale), overrides) from error


def _entries_of(path: Path, scales: Mapping[str, _Entries], scale: Scale) -> _Entries:
    if scale not in {*scales, "smoke"}:  # every file has a smoke scale
        raise StudyFileError(f"{path}: there is no scale {scale}; the file has {', '.join(scales)}")
    entries = scales["paper"] | scales.get(scale, {})
    return {name: entry for name, entry in entries.items() if scale != "smoke" or name not in _SMOKE}


def _placed(error: FieldError, path: Path, entries: _Entries, overrides: Mapping[str, Any]) -> ValueError:
    """Return the error with the line of the first of its fields that was given.

    If that field is an override, the error stays a `FieldError`, about that field alone: the caller knows its place.
    """
    within = [field for field in error.fields if field.startswith("variants.") and "variants" not in overrides]
    for field in (*within, *error.fields):
        if field in overrides or field in overrides.get("fixed", {}):
            return FieldError(field, str(error))
        if (key := _key(field, entries)) is not None:
            return _error(key, str(error))
    return StudyFileError(f"{path}: {error}")


def _key(field: str, entries: _Entries) -> yaml.Node | None:
    """Return the key that sets a field or a hyperparameter; the key of the variants if one of them sets it."""
    if field in entries:
        return entries[field].key
    if "variants" in entries and field.startswith("variants."):
        return _variant_keys(entries["variants"].node).get(field)
    if "fixed" in entries and field in entries["fixed"].value:
        keys: list[yaml.Node] = [key for key, _ in entries["fixed"].node.value if key.value == field]
        return keys[0]
    if "variants" in entries and any(field in variant.fixed for variant in entries["variants"].value):
        return entries["variants"].key
    return None


def _variant_keys(variants: yaml.Node) -> dict[str, yaml.Node]:
    """Return the keys in a file's variants, by "variants.NAME.field", of hyperparameters "variants.NAME.sgd.lr"."""
    found: dict[str, yaml.Node] = {}
    for node in variants.value:
        pairs = [(key, value) for key, value in node.value]
        name = next(value.value for key, value in pairs if key.value == "name")
        fixed = [pair for key, value in pairs if key.value == "fixed" for pair in value.value]
        found |= {f"variants.{name}.{key.value}": key for key, _ in (*pairs, *fixed)}
    return found


def _values(entries: _Entries) -> dict[str, Any]:
    return {name: entry.value for name, entry in entries.items()}


def _chosen(variants: Sequence[Variant | str], entries: _Entries) -> tuple[Variant, ...]:
    """Return the variants given on the command line, taking those given by name from the file."""
    known = {variant.name: variant for variant in entries["variants"].value} if "variants" in entries else {}
    for variant in variants:
        if isinstance(variant, str) and variant not in known:
            raise FieldError("variants", str(UnknownNameError("variant", variant, list(known))))
    return tuple(known[variant] if isinstance(variant, str) else variant for variant in variants)


# Reading the file, scale by scale


def _scales(path: Path) -> dict[str, _Entries]:
    """Return the fields that every scale of a file sets, checked for their types."""
    pairs = _mapping(_compose(path), "a study", "field", [*_FIELDS, "scales"])
    scales = pairs.pop("scales", None)
    result = {"paper": _entries(pairs)}
    if scales is not None:
        changeable = [name for name in _FIELDS if name != "name"]
        for name, pair in _mapping(scales.value, "scales", "scale", SCALES[1:]).items():
            result[name] = _entries(_mapping(pair.value, f"scale {name}", "field", changeable))
    return result


def _compose(path: Path) -> yaml.Node:
    try:
        with path.open("rb") as file:
            node = yaml.compose(file, Loader=yaml.SafeLoader)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise StudyFileError(f"there is no study file {path}{_near_files(path)}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise StudyFileError(f"{path}{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise StudyFileError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    if node is None:
        raise StudyFileError(f"{path}, line 1: a study must be a mapping, not an empty file")
    return node


def _near_files(path: Path) -> str:
    names = sorted(file.stem for file in path.parent.glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(path.with_name(f'{name}.yaml')) for name in near)}?" if near else ""


def _entries(pairs: Mapping[str, _Pair]) -> _Entries:
    if "imports" in pairs:  # first, because other fields may name what they register
        _import(pairs["imports"].value)
    entries = {}
    for name, (key, node) in pairs.items():
        value = _as_list(node) if name in _ONE_OR_SEVERAL else node
        entries[name] = _Entry(_convert(value, _FIELDS[name], name), key, value)
    return entries


def _as_list(node: yaml.Node) -> yaml.Node:
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        return node
    return yaml.SequenceNode("tag:yaml.org,2002:seq", [node], node.start_mark, node.end_mark)


def _import(node: yaml.Node) -> None:
    for name, item in zip(_convert(node, _FIELDS["imports"], "imports"), node.value, strict=True):
        try:
            import_plugins([name])
        except PluginError as error:
            raise _error(item, str(error)) from error


def _check_names(scales: Mapping[str, _Entries], overrides: Mapping[str, Any]) -> None:
    """Raise for the first unknown name in any scale, unless the command line overrides its field."""
    for entries in scales.values():
        for field, (value, _, node) in entries.items():
            if field not in overrides:
                items = zip(value, node.value, strict=True) if isinstance(value, tuple) else [(value, node)]
                for name, where in items:
                    _check_name(field, name, where)


def _check_name(field: str, name: Any, node: yaml.Node) -> None:
    try:
        if isinstance(name, str):
            check_name(field, name)
    except FieldError as error:
        raise _error(node, str(error)) from error


def _mapping(node: yaml.Node, what: str, kind: str, valid: Collection[str] | None = None) -> dict[str, _Pair]:
    """Return the pairs of a mapping by key. Raise for a repeated key or one that is not in `valid`, if given."""
    if not isinstance(node, yaml.MappingNode):
        raise _error(node, f"{what} must be a mapping, not {_describe(node)}")
    result: dict[str, _Pair] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error(key, f"the name of a {kind} must be a word, not {_describe(key)}")
        if valid is not None and key.value not in valid:
            raise _error(key, str(UnknownNameError(kind, key.value, list(valid))))
        if key.value in result:
            first = result[key.value].key.start_mark.line + 1
            raise _error(key, f"{kind} {key.value} is named twice, on line {first} too")
        result[key.value] = _Pair(key, value)
    return result


# From nodes to values, by the types of the fields


def _convert(node: yaml.Node, kind: Any, what: str) -> Any:
    """Return the value of a node as the type of a field; `what` is its name in errors."""
    if NoneType in get_args(kind):
        if _is_null(node):
            return None
        [kind] = [one for one in get_args(kind) if one is not NoneType]
    if kind is Variant:
        return _variant(node)
    if get_origin(kind) is tuple:
        return _tuple(node, get_args(kind)[0], what)
    if get_origin(kind) in (dict, Mapping):
        pairs = _mapping(node, what, "hyperparameter")
        values = {name: _convert(pair.value, get_args(kind)[1], name) for name, pair in pairs.items()}
        known = known_names() if pairs else []
        for name, pair in pairs.items():
            if name not in known:
                raise _error(pair.key, str(unknown_hyperparameter(name, known)))
        return values
    return _scalar(node, kind, what)


def _variant(node: yaml.Node) -> Variant:
    kinds = get_type_hints(Variant)
    pairs = _mapping(node, "a variant", "field of a variant", kinds)
    if "name" not in pairs:
        raise _error(node, "a variant needs a name")
    values = {name: _convert(pair.value, kinds[name], name) for name, pair in pairs.items()}
    if "published" in values:
        _check_name("published", values["published"], pairs["published"].value)
    return Variant(**values)


def _tuple(node: yaml.Node, kind: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _error(node, f"{what} must be a list, not {_describe(node)}")
    return tuple(_convert(item, kind, f"an entry of {what}") for item in node.value)


def _scalar(node: yaml.Node, kind: Any, what: str) -> Any:
    quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
    if get_origin(kind) is Literal or (kind == Value and quoted):
        kind = str
    parse, description = _SCALARS[kind]
    if isinstance(node, yaml.ScalarNode) and not _is_null(node):
        try:
            return parse(node.value)
        except ValueError:
            pass
    raise _error(node, f"{what} must be {description}, not {_describe(node)}")


def _path(text: str) -> Path:
    if not text:  # Path would make it the current folder
        raise ValueError(text)
    return with_home(text)


# The text is not parsed by YAML, for which 1e-3 is a word and the domain 0 a number.
_SCALARS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (parse_truth, "true or false"),
    str: (str, "a word"),
    Path: (_path, "a path"),
    Value: (parse_value, "a number or a word"),
}


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "null" if _is_null(node) else repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _error(node: yaml.Node, message: str) -> StudyFileError:
    return StudyFileError(f"{node.start_mark.name}, line {node.start_mark.line + 1}: {message}")


# Variants that fit no method of the study


def _leave_out_variants(entries: _Entries, given: Mapping[str, Any]) -> list[str]:
    """Remove the file's variants that fit no method; return a line for each."""
    methods = _hyperparameters({**vars(Study()), **_values(entries), **given})
    if "variants" not in entries or not methods:
        return []
    variants, key, node = entries["variants"]
    kept = tuple(variant for variant in variants if _runnable(variant, methods))
    reasons = [f"variant {variant.name}: {_reason(variant, methods)}" for variant in variants if variant not in kept]
    if reasons and not kept:
        raise _error(key, f"none of the variants can be run: {'; '.join(reasons)}")
    entries["variants"] = _Entry(kept, key, node)
    return [f"skipped: {reason}" for reason in reasons]


def _hyperparameters(values: Mapping[str, Any]) -> list[set[str]]:
    """Return the names of every method's hyperparameters; nothing if a name is unknown, as `Study` will say."""
    try:
        return [set(hyperparameters(*method)) for method in product(*(values[field] for field in _METHODS))]
    except UnknownNameError:
        return []


def _runnable(variant: Variant, methods: Sequence[set[str]]) -> bool:
    return any(applies(variant.fixed.keys(), names) for names in methods)


def _reason(variant: Variant, methods: Sequence[set[str]]) -> str:
    unknown = [name for name in variant.fixed if not any(name in names for names in methods)]
    return f"no method of the study has {', '.join(unknown) if unknown else ' and '.join(variant.fixed)}"
