import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import main
from shiftproof.data import FolderError, UnreadableImagesError, folder, open_folder
from shiftproof.data.check import check_data
from shiftproof.data.downloads import SOURCES

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
        "images that are in one class of a domain more than once: 0",
        "images that are in no class, left out: 0",
        "other files in classes, left out: 0",
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


def test_files_that_are_equal_within_a_class_are_told(image_tree):
    """They can stand on both sides of a split."""
    root = image_tree(TREE)
    for copy in ("art/cat/b.png", "photo/dog/f.png"):
        shutil.copy(root / "art/cat/a.png", root / copy)
    (root / "photo/cat/linked.png").symlink_to("d.png")
    checked = check_data(root)
    assert checked.ok
    assert checked.within_classes == (
        (root / "art/cat/a.png", root / "art/cat/b.png", root / "photo/dog/f.png"),
        (root / "photo/cat/d.png", root / "photo/cat/linked.png"),
    )
    assert checked.across_domains == checked.within_classes[:1]
    assert checked.across_classes == ()
    assert (
        "images that are in one class of a domain more than once: 2\n"
        "  art/cat/a.png = art/cat/b.png = photo/dog/f.png\n"
        "  photo/cat/d.png = photo/cat/linked.png\n"
    ) in checked.text()


def test_files_that_are_left_out_are_counted_by_suffix(image_tree, capsys):
    root = image_tree(TREE)
    (root / "art/cat/more").mkdir()
    for name in (
        "art/cat/x.gif",
        "art/cat/more/y.GIF",
        "photo/dog/z.gif",
        "art/dog/v.jfif",
        "art/dog/w.heic",
        "art/dog/n",
    ):
        (root / name).touch()
    for name in ("README.md", "art/.x.png", "art/dog/.DS_Store"):
        (root / name).touch()
    for name in ("cover.png", "art/stray.jpg"):
        shutil.copy(root / "art/cat/a.png", root / name)
    checked = check_data(root)
    assert checked.ok
    assert checked.left_out == {".gif": 3, ".jfif": 1, ".heic": 1, "no suffix": 1}
    assert checked.misplaced == (root / "cover.png", root / "art/stray.jpg")
    assert main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "images that are in no class, left out: 2",
        "  cover.png",
        "  art/stray.jpg",
        "other files in classes, left out: .gif 3, .heic 1, .jfif 1, no suffix 1",
    ]


def test_what_cannot_be_trained_on_is_unreadable(image_tree):
    """One decoder reads for both: Pillow alone can open a picture of floats, whose range nobody knows."""
    root = image_tree(TREE)
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "art/cat/deep.tif")
    (root / "photo/dog/e.jpg").write_bytes((root / "photo/dog/e.jpg").read_bytes()[:-20])
    checked = check_data(root)
    with pytest.raises(UnreadableImagesError) as raised:
        open_folder(root, 8)
    assert [str(error) for error in checked.unreadable] == [str(error) for error in raised.value.errors]
    assert [error.path.name for error in checked.unreadable] == ["deep.tif", "e.jpg"]


def test_a_published_set_is_known_by_its_folder_or_by_name(image_tree):
    root = image_tree(
        {domain: {"bus": ["a.png"], "car": ["b.png"]} for domain in ("Art", "Clipart", "Product", "Real World")},
        "OfficeHome",
    )
    expected = (
        "2 classes instead of 65",
        "2 images in Art instead of 2427",
        "2 images in Clipart instead of 4365",
        "2 images in Product instead of 4439",
        "2 images in Real World instead of 4357",
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
    with pytest.raises(
        UnknownNameError, match=r"Did you mean PACS\?.*DomainNet, spoken_digits, rotated_mnist, colored_mnist"
    ):
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


def test_names_are_shown_on_one_line_each(image_tree, capsys):
    files = {"cat\tb": ["a.png"], "dog\x1b[0m": ["b.png"]}
    assert main(["data", "check", str(image_tree({"a\nb": files, "c": files}))]) == 0
    assert capsys.readouterr().out.splitlines()[2:6] == [
        "class       a b  c  all",
        "cat b         1  1    2",
        "dog\\x1b[0m    1  1    2",
        "all           2  2    4",
    ]


def test_a_single_domain_is_pointed_out(image_tree, capsys):
    line = "it has one domain: training needs two or more, because it leaves one out"
    assert main(["data", "check", str(image_tree({"art": TREE["art"]}))]) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert main(["data", "check", str(image_tree(TREE, "two"))]) == 0
    assert line not in capsys.readouterr().out


@pytest.mark.slow
def test_every_image_of_the_real_pacs_can_be_read(pacs_folder):
    checked = check_data(pacs_folder)
    assert checked.ok
    assert checked.across_domains == checked.across_classes == ()


@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", ""],
        ["compare", "--dataset", "folder", "--data-dir", ""],
        ["train", "--target", "0", "--output", "out", "--weights", ""],
        ["evaluate", "run", "--data-dir", ""],
        ["evaluate", "", "--data-dir", "data"],
        ["diagnose", "run", "--data-dir", ""],
        ["bench", "data", "--target", "0", "--data-dir", ""],
        ["compare", "--output", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(command, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert "the path is empty" in capsys.readouterr().err
