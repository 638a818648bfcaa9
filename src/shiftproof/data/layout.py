"""Finds the domains and classes among the folders of a data set, and raises if there are several readings."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from shiftproof.data.dataset import check_domain_names, printable
from shiftproof.data.images import is_image
from shiftproof.data.tree import FolderError, Tree

_LAYOUT = "expected <root>/<domain>/<class>/<image>"
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_NAMED = 3


class AmbiguousFolderError(FolderError):
    """The levels of a folder could be meant in several ways; the message lists them, each with what to do."""


def domains_and_classes(tree: Tree) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the domains and of the classes of a data set, both sorted.

    Raises:
        AmbiguousFolderError: the folders could be meant in another way.
        FolderError: the folders are not laid out as `<root>/<domain>/<class>/<image>`.
    """
    root, names = tree.root, tree.listing(tree.root).folders
    if not names:
        raise FolderError(f"{root}: no domain folders; {_LAYOUT}{_too_few(tree, root)}")
    check_names((root.name, *names), root)
    try:
        check_domain_names(names)
    except ValueError as error:
        raise FolderError(f"{root}: {error}") from error
    domains = {name: tree.listing(root / name).folders for name in names}
    _refuse_parts_as_domains(tree, domains)
    for domain, classes in domains.items():
        if not classes:
            folder = root / domain
            raise FolderError(f"{folder}: no class folders; {_LAYOUT}{_too_few(tree, folder)}")
        check_names(classes, root / domain)
        refuse_folders_of_folders(tree, root / domain, classes)
    classes = tuple(sorted(set().union(*domains.values())))
    if len(classes) == 1 or _PARTS.issuperset(map(str.lower, classes)):
        raise _no_classes(root, tuple(domains), classes)
    lacking = [
        f"{domain} lacks {', '.join(missing)}"
        for domain, present in domains.items()
        if (missing := [name for name in classes if name not in present])
    ]
    if lacking:
        raise FolderError(f"{root}: classes differ between domains: {'; '.join(lacking)}")
    return tuple(domains), classes


def check_names(names: Iterable[str], folder: Path) -> None:
    """Check that names of domains and classes are valid text, which tables and files of results need.

    Raises:
        FolderError: a name is not in the encoding of the file system.
    """
    for name in names:
        if printable(name) != name:
            raise FolderError(
                f"{printable(folder)}: the name {printable(name)} is not valid text, but tables show the names of "
                "domains and classes; rename the folder"
            )


def refuse_folders_of_folders(tree: Tree, domain: Path, classes: Iterable[str]) -> None:
    """Raise if a class holds folders but no pictures: there is a level too many, or the root is another folder.

    Args:
        tree: the data set.
        domain: the folder of the classes.
        classes: names of the classes.

    Raises:
        AmbiguousFolderError: a class holds folders but no pictures.
    """
    if bad := [name for name in classes if _holds_folders_only(tree, domain / name)]:
        raise _folder_of_folders(tree, domain, _main(bad))


def _holds_folders_only(tree: Tree, folder: Path) -> bool:
    listing = tree.listing(folder)
    return bool(listing.folders) and not any(map(is_image, listing.files))


def _folder_of_folders(tree: Tree, domain: Path, name: str) -> FolderError:
    siblings, below = tree.listing(domain).folders, tree.listing(domain / name).folders
    part = name.lower() in _PARTS
    readings = []
    if domain == tree.root:  # a root of classes, as `evaluate` takes it
        readings.append(f"{domain / name} is the folder to score, with {_some(below)}: {_option(domain / name)}")
    elif not part and len(siblings) > 1:
        readings.append(f"{domain} is the data set, with the domains {_some(siblings)}: {_option(domain)}")
    if domain != tree.root and (part or len(siblings) == 1):
        having = [one for one in tree.listing(tree.root).folders if name in tree.listing(tree.root / one).folders]
        what = "a part of each domain" if part else "one level too many"
        readings.append(f"{name} is {what}: {_linked(tree.root, having, name)}")
    folder = _quoted(domain / name)
    readings.append(
        f"{name} is a class with its pictures in folders of its own: "
        f"find {folder} -mindepth 2 -type f -exec mv -n {{}} {folder} \\;"
    )
    return _asked(f"{domain / name}: read as a class, but it holds folders ({_some(below)}) and no pictures", readings)


def _refuse_parts_as_domains(tree: Tree, domains: Mapping[str, Sequence[str]]) -> None:
    parts = [name for name in domains if name.lower() in _PARTS]
    if not parts:
        return
    first = tree.root / _main(parts)
    below = domains[first.name]
    if below and all(_holds_folders_only(tree, first / name) for name in below):
        reading = (
            f"they are parts of a data set, which is split here anyway: take {first.name}, with the domains "
            f"{_some(below)}: {_option(first)}"
        )
    else:
        reading = (
            f"they are parts of one domain, which is split here anyway: mkdir NEW && ln -s {_quoted(first)} "
            f"NEW/NAME_OF_THE_DOMAIN, the same for the other domains, then {_option(Path('NEW'))}"
        )
    raise _asked(
        f"{tree.root}: {_some(parts)} would be read as domains, but are names of parts of a data set",
        [
            reading,
            f"they are domains: rename them, mv {_quoted(first)} {_quoted(tree.root / 'NAME_OF_THE_DOMAIN')}",
        ],
    )


def _no_classes(root: Path, domains: Sequence[str], classes: Sequence[str]) -> FolderError:
    """Return the error for a data set with one class, or with classes named like parts (train, test)."""
    loop = f"mkdir -p NEW/NAME_OF_THE_DOMAIN && {_links(root, domains, _main(classes), 'NEW/NAME_OF_THE_DOMAIN')}"
    readings = [
        f"{_some(domains)} {'is the one class' if len(domains) == 1 else 'are the classes'} of one domain: {loop}, "
        f"the same for the other domains, then {_option(Path('NEW'))}"
    ]
    if len(classes) == 1:
        readings.append(
            f"{_some(domains)} {'is the one domain' if len(domains) == 1 else 'are the domains'}: add the folders of "
            f"the other classes beside {classes[0]}"
        )
        return _asked(f"{root}: one class only, {classes[0]}; there is nothing to tell apart", readings)
    old = root / domains[0] / classes[0]
    readings.append(f"they are classes: rename them, mv {_quoted(old)} {_quoted(old.parent / 'NAME_OF_THE_CLASS')}")
    return _asked(f"{root}: {_some(classes)} would be read as classes, but are names of parts of a data set", readings)


def _too_few(tree: Tree, folder: Path) -> str:
    """Return advice on pictures that are directly in a folder of domains or classes; empty if there are none."""
    if not any(map(is_image, tree.listing(folder).files)):
        return ""
    readings = [
        f"{folder} is a class: name the folder of its domain's data set, {_option(folder.parent.parent)}",
        f"{folder} is a domain: move its pictures into a folder for every class, as in "
        f"{_quoted(folder / 'NAME_OF_THE_CLASS')}, then {_option(folder.parent)}",
    ]
    return f". {folder} holds pictures. {_either(readings)}"


def _linked(root: Path, domains: Sequence[str], name: str) -> str:
    return f"mkdir NEW && {_links(root, domains, name, 'NEW')}, then {_option(Path('NEW'))}"


def _links(root: Path, folders: Sequence[str], name: str, place: str) -> str:
    """Return a command that links every folder's `name` under that folder's own name in a new place."""
    return (
        f"for d in {' '.join(map(shlex.quote, folders))}; do "
        f'ln -s {_quoted(root)}/"$d"/{shlex.quote(name)} {place}/"$d"; done'
    )


def _asked(what: str, readings: Sequence[str]) -> AmbiguousFolderError:
    return AmbiguousFolderError(f"{what}. {_either(readings)}")


def _either(readings: Sequence[str]) -> str:
    return "Which is meant?" + "".join(f"\n  {reading}" for reading in readings)


def _option(folder: Path) -> str:
    return f"--data-dir {_quoted(folder)} (or data check {_quoted(folder)})"


def _main(names: Sequence[str]) -> str:
    """Return the training part if names are those of parts, else the first name."""
    return min(names, key=lambda name: not name.lower().startswith("train"))


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
