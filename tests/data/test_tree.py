"""Links, closed folders and the order of files: what changes the data without a word is an error."""

import os
import shutil
from errno import EIO
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from shiftproof.cli import main
from shiftproof.data import FolderError, labelled_images, open_folder
from shiftproof.data.folder import list_folder

TREE = {
    "art": {"cat": ["a.png", "b.png"], "dog": ["c.png"]},
    "photo": {"cat": ["d.png"], "dog": ["e.png", "f.png"]},
}
CLASSES = ("cat", "dog")


def _commands(root):
    """What opens a folder, without a model and with one."""
    return (lambda: open_folder(root, 8), lambda: list_folder(root), lambda: labelled_images(root, CLASSES))


@pytest.mark.parametrize(
    ("link", "to", "named"),
    [
        ("art/cat/self", ".", {"art/cat", "art/cat/self"}),
        ("art/cat/up", "..", {"art", "art/cat/up"}),
        ("art/cat/root", "../..", {"", "art/cat/root"}),
        ("art/cat/above", "../../..", {"..", "art/cat/above"}),
        ("art/cat/other", "../dog", {"art/dog", "art/cat/other"}),
        ("photo/cat/dogs", "../../art/dog", {"art/dog", "photo/cat/dogs"}),
        ("again", "art", {"art", "again"}),
    ],
)
def test_a_real_folder_that_is_reached_twice_is_an_error_that_names_both_paths(image_tree, link, to, named):
    root = image_tree(TREE)
    (root / link).symlink_to(to)
    for command in _commands(root):
        with pytest.raises(FolderError, match="are the same folder: its pictures would count twice") as raised:
            command()
        paths = str(raised.value).partition(" are the same")[0].split(" and ")
        assert sorted(paths) == sorted(os.path.normpath(root / name) for name in named)


def test_links_that_go_round_are_an_error(image_tree, tmp_path):
    root = image_tree(TREE)
    for name, to in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "on").symlink_to(tmp_path / to)
    (root / "art" / "cat" / "round").symlink_to(tmp_path / "one")
    for command in _commands(root):
        with pytest.raises(FolderError, match=r"art/cat/round and .*art/cat/round/on/on are the same folder"):
            command()
    (root / "art" / "cat" / "round").unlink()
    (root / "photo" / "dog" / "loop").symlink_to("loop")
    for command in _commands(root):
        with pytest.raises(FolderError, match=r"photo/dog/loop cannot be read: Too many levels"):
            command()


def test_links_out_of_the_root_are_followed(image_tree, tmp_path):
    root = image_tree(TREE)
    plain = [[path.relative_to(root) for path in one.paths] for one in list_folder(root).files]
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "art").rename(outside / "paintings")
    (root / "art").symlink_to(outside / "paintings")  # a domain
    (root / "photo" / "dog").rename(outside / "dogs")
    (root / "photo" / "dog").symlink_to(outside / "dogs")  # a class
    (root / "photo" / "cat" / "d.png").rename(outside / "cat.png")
    (root / "photo" / "cat" / "d.png").symlink_to(outside / "cat.png")  # a picture
    (tmp_path / "linked").symlink_to(root)
    for place in (root, tmp_path / "linked"):  # the root
        assert [[path.relative_to(place) for path in one.paths] for one in list_folder(place).files] == plain


def test_two_links_to_one_picture_are_the_picture_twice(image_tree):
    root = image_tree(TREE)
    (root / "art" / "cat" / "z.png").symlink_to("a.png")
    art = open_folder(root, 8).domains[0]
    assert art.targets.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(art.inputs[2], art.inputs[0])


@pytest.mark.parametrize("link", ["drawing", "art/mouse", "art/cat/more", "art/cat/x.png"])
def test_a_link_that_leads_nowhere_is_an_error(image_tree, link):
    root = image_tree(TREE)
    (root / link).symlink_to("gone")
    for command in _commands(root):
        with pytest.raises(FolderError, match=rf"{root / link} is a broken link"):
            command()


@pytest.mark.parametrize("closed", ["", "art", "art/cat", "photo/dog/more", "photo/dog/more/deep"])
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(EIO, "Input/output error")])
def test_the_first_folder_that_cannot_be_listed_ends_it_with_its_path(image_tree, monkeypatch, closed, error):
    root = image_tree(TREE)
    (root / "photo" / "dog" / "more" / "deep").mkdir(parents=True)
    shutil.copy(root / "photo/dog/e.png", root / "photo/dog/more/deep/z.png")
    scandir = os.scandir

    def refusing(folder):
        if Path(folder) == root / closed:
            raise type(error)(error.errno, error.strerror, os.fspath(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    for command in _commands(root):
        with pytest.raises(FolderError, match=rf"^{root / closed} cannot be read: {error.strerror}$"):
            command()


def test_a_folder_that_breaks_off_while_it_is_listed_is_an_error(image_tree, monkeypatch):
    root = image_tree(TREE)
    scandir = os.scandir

    class Breaking:
        def __init__(self, folder):
            self.folder, self.entries = folder, scandir(folder)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            yield next(self.entries)
            if Path(self.folder) == root / "art" / "cat":
                raise OSError(EIO, "Input/output error")
            yield from self.entries

    monkeypatch.setattr(os, "scandir", Breaking)
    for command in _commands(root):
        with pytest.raises(FolderError, match=r"art/cat cannot be read: Input/output error"):
            command()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_without_permission_is_named(image_tree, capsys):
    root = image_tree(TREE)
    closed = root / "photo" / "dog"
    for mode in (0o000, 0o300):
        closed.chmod(mode)
        try:
            assert main(["data", "check", str(root)]) == 1
        finally:
            closed.chmod(0o700)
        assert f"{closed} cannot be read: Permission denied" in capsys.readouterr().err


def test_pipes_are_not_waited_for(image_tree):
    root = image_tree(TREE)
    os.mkfifo(root / "art" / "cat" / "pipe.png")
    assert len(open_folder(root, 8).domains[0]) == 3


def test_files_in_folders_of_a_class_are_in_the_order_of_torchvision(image_tree):
    """Sorted by the folder's path as a string, in which a slash comes after a blank, a hyphen and a dot."""
    root = image_tree(TREE)
    for place in ("x/y", "x-y", "x y", "x.y", "x/y/z", "X", "x0", "x/é", "x/Z"):
        folder = root / "art" / "cat" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("1.png", "A.JPG", "a.webp", "notes.txt"):
            shutil.copy(root / "art/cat/a.png", folder / name)
    (root / "art" / "dog" / "out").symlink_to(shutil.copytree(root / "art" / "cat", root.parent / "outside"))
    for domain in labelled_images(root, CLASSES):
        files = [(str(path), label) for path, label in zip(domain.paths, domain.labels.tolist(), strict=True)]
        assert files == ImageFolder(root / domain.name).samples
    assert len(files) < len(labelled_images(root, CLASSES)[0].paths)


def _undecodable(root, place):
    """Give a folder or file of a tree a name that is no UTF-8."""
    old = root / place
    return old.rename(old.parent / os.fsdecode(os.fsencode(old.stem) + b"\xff" + os.fsencode(old.suffix)))


def test_pictures_of_undecodable_names_are_trained_on_and_reported(image_tree, capfdbinary):
    root = image_tree(TREE)
    plain = open_folder(root, 8)
    (root / "art" / "cat" / "more").mkdir()
    renamed = _undecodable(root, "art/cat/b.png")
    shutil.move(renamed, _undecodable(root, "art/cat/more"))
    named = open_folder(root, 8)
    for one, other in zip(plain.domains, named.domains, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    (root / "art" / "cat" / "a.png").write_bytes(next(root.glob("art/cat/more*/*.png")).read_bytes())
    assert main(["data", "check", str(root)]) == 0
    assert rb"art/cat/a.png = art/cat/more\udcff/b\udcff.png" in capfdbinary.readouterr().out


@pytest.mark.parametrize("place", ["", "art", "art/dog"])
def test_undecodable_names_of_domains_classes_and_the_set_are_refused(image_tree, place, capsys):
    root = image_tree(TREE)
    renamed = _undecodable(root, place)
    root = root if place else renamed
    shown = renamed.name.replace("\udcff", r"\udcff")
    for command in (["data", "check", str(root)], ["compare", "--dataset", "folder", "--data-dir", str(root)]):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert f"the name {shown} is not valid text" in printed
        assert "rename the folder" in printed
    if place == "art":
        with pytest.raises(FolderError, match="not valid text"):
            labelled_images(root, CLASSES)
