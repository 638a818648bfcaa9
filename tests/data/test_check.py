import shutil
from dataclasses import replace

import pytest

from shiftproof.cli import main
from shiftproof.data import FolderError, folder
from shiftproof.data.check import check_data
from shiftproof.data.downloads import SOURCES
from shiftproof.registry import UnknownNameError

TREE = {"art": {"cat": ["a.png", "b.png"], "dog": ["c.png"]}, "photo": {"cat": ["d.png"], "dog": ["e.jpg", "f.png"]}}


def test_a_good_folder_has_its_table_and_passes(image_tree, capsys):
    root = image_tree(TREE)
    assert main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(root),
        "",
        "class  art  photo  all",
        "cat      2      1    3",
        "dog      1      2    3",
        "all      3      3    6",
        "",
        "not compared with a published data set",
        "unreadable images: 0",
        "images that are in several domains: 0",
        "images that are in several classes of a domain: 0",
    ]


@pytest.mark.parametrize("name", ["e.jpg", "f.png"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_unreadable_images_are_named_and_fail(image_tree, capsys, name, damage):
    path = image_tree(TREE) / "photo" / "dog" / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "empty": b"", "text": b"no image"}[damage])
    assert main(["data", "check", str(path.parents[2])]) == 1
    printed = capsys.readouterr().out
    assert "unreadable images: 1\n" in printed
    assert f"  {path}: " in printed


def test_equal_files_are_told_but_do_not_fail(image_tree):
    root = image_tree(TREE)
    shutil.copy(root / "art/cat/a.png", root / "photo/dog/f.png")
    shutil.copy(root / "art/cat/b.png", root / "art/dog/c.png")
    checked = check_data(root)
    assert checked.ok
    assert checked.across_domains == ((root / "art/cat/a.png", root / "photo/dog/f.png"),)
    assert checked.across_classes == ((root / "art/cat/b.png", root / "art/dog/c.png"),)
    assert "  art/cat/a.png = photo/dog/f.png" in checked.text()


def test_files_that_are_equal_in_both_ways_are_told_twice(image_tree):
    root = image_tree(TREE)
    for copy in ("art/dog/c.png", "photo/dog/f.png"):
        shutil.copy(root / "art/cat/a.png", root / copy)
    checked = check_data(root)
    [group] = checked.across_domains
    assert len(group) == 3
    assert checked.across_classes == (group,)


def test_a_published_set_is_known_by_its_folder_or_by_name(image_tree):
    root = image_tree(
        {domain: {"bus": ["a.png"]} for domain in ("Art", "Clipart", "Product", "Real World")}, "OfficeHome"
    )
    expected = (
        "1 classes instead of 65",
        "1 images in Art instead of 2427",
        "1 images in Clipart instead of 4365",
        "1 images in Product instead of 4439",
        "1 images in Real World instead of 4357",
    )
    assert check_data(root).differences == expected
    assert check_data(root.parent, "OfficeHome").differences == expected
    moved = root.rename(root.with_name("mine"))
    assert check_data(moved).name is None
    assert check_data(moved, "OfficeHome").differences == expected
    assert check_data(moved, "officehome").differences == expected  # as `data get` has it


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_set_that_can_be_fetched_can_be_checked_by_the_same_name(tmp_path, name):
    with pytest.raises(ValueError, match="no such f") as raised:
        check_data(tmp_path / "gone", name)
    assert not isinstance(raised.value, UnknownNameError)


def test_bad_input_is_refused(image_tree, tmp_path):
    with pytest.raises(FolderError, match="gone: no such folder"):
        check_data(tmp_path / "gone")
    with pytest.raises(UnknownNameError, match=r"Did you mean PACS\?.*DomainNet, rotated_mnist, colored_mnist"):
        check_data(image_tree(TREE), "PACs")


def test_the_real_pacs_is_the_published_one(pacs_folder):
    """Its counts; what takes reading every image is in the slow test."""
    listed = folder.list_folder(pacs_folder)
    assert (listed.name, listed.differences) == ("PACS", ())
    assert listed.counts["sketch"]["dog"] == 772


def test_images_that_changed_class_are_noticed(image_tree, monkeypatch):
    known = replace(
        folder._BENCHMARKS[0], domains=(("art",), ("photo",)), classes=2, counts=(3, 3), class_counts=((2, 1), (2, 1))
    )
    monkeypatch.setattr(folder, "_BENCHMARKS", (known,))
    assert folder.list_folder(image_tree(TREE, "PACS")).differences == (
        "1 images of cat in photo instead of 2",
        "2 images of dog in photo instead of 1",
    )


@pytest.mark.slow
def test_every_image_of_the_real_pacs_can_be_read(pacs_folder):
    checked = check_data(pacs_folder)
    assert checked.ok
    assert checked.across_domains == checked.across_classes == ()
