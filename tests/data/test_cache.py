import os
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from PIL import ImageFile

from processes import HANG
from shiftproof.data import CacheError, UnreadableImagesError, cache, decode, open_folder

TREE = {"art": {"cat": ["a.png", "b.png"], "dog": ["c.png"]}, "photo": {"cat": ["d.png"], "dog": ["e.png"]}}


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded so far."""
    files = []

    def record(path, size):
        files.append(path.name)
        return decode(path, size)

    monkeypatch.setattr(cache, "decode", record)
    return files


def test_images_are_decoded_once_and_mapped(image_tree, decoded):
    root = image_tree(TREE)
    first = open_folder(root, 8)
    assert sorted(decoded) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    again = open_folder(root, 8)
    assert len(decoded) == 5
    for domain, same in zip(first.domains, again.domains, strict=True):
        assert isinstance(same.inputs, np.memmap)
        np.testing.assert_array_equal(domain.inputs, same.inputs)
    np.testing.assert_array_equal(first.domains[0].inputs[2], decode(root / "art" / "dog" / "c.png", 8))
    np.testing.assert_array_equal(first.domains[1].inputs[0], decode(root / "photo" / "cat" / "d.png", 8))


def test_blocks_keep_the_order(image_tree, monkeypatch):
    root = image_tree(TREE)
    whole = open_folder(root, 8).domains[0].inputs.copy()
    shutil.rmtree(cache.cache_folder())
    monkeypatch.setattr(cache, "_BLOCK", 2)
    np.testing.assert_array_equal(open_folder(root, 8).domains[0].inputs, whole)


def test_progress_and_time_left_go_to_standard_error(image_tree, monkeypatch, capsys):
    monkeypatch.setattr(cache, "_REPORT_SECONDS", 0)
    monkeypatch.setattr(cache, "_BLOCK", 3)
    open_folder(image_tree(TREE), 8)
    output = capsys.readouterr()
    assert "shapes: 3 of 5 images decoded, 0 s left" in output.err
    assert not output.out


def test_another_size_is_another_cache(image_tree, decoded, cache_folder):
    root = image_tree(TREE)
    assert open_folder(root, 8).input_shape == (3, 8, 8)
    assert open_folder(root, 6).input_shape == (3, 6, 6)
    open_folder(root, 8)
    assert len(decoded) == 10
    assert len(list(cache_folder.glob("*.npy"))) == 2


def test_a_changed_file_renews_the_cache(image_tree, decoded, cache_folder):
    root = image_tree(TREE)
    before = open_folder(root, 8).domains[0].inputs.copy()
    shutil.copyfile(root / "photo" / "dog" / "e.png", root / "art" / "cat" / "a.png")
    os.utime(root / "art" / "cat" / "a.png", ns=(1, 1))
    after = open_folder(root, 8)
    assert len(decoded) == 10
    np.testing.assert_array_equal(after.domains[0].inputs[0], after.domains[1].inputs[1])
    np.testing.assert_array_equal(after.domains[0].inputs[1:], before[1:])
    assert len(list(cache_folder.glob("*.npy"))) == 1  # the stale one is gone


def test_a_new_file_renews_the_cache(image_tree, decoded):
    root = image_tree(TREE)
    open_folder(root, 8)
    shutil.copyfile(root / "art" / "cat" / "a.png", root / "art" / "cat" / "a2.png")
    assert len(open_folder(root, 8).domains[0]) == 4


@pytest.mark.parametrize("damage", ["truncated", "longer", "header", "bracket", "empty"])
def test_a_damaged_cache_is_rebuilt(image_tree, decoded, cache_folder, damage):
    root = image_tree(TREE)
    images = open_folder(root, 8).domains[0].inputs.copy()
    (file,) = cache_folder.glob("*.npy")
    content = file.read_bytes()
    damaged = {
        "truncated": content[:-1],
        "longer": content + b"x",
        "header": b"x" * 200 + content[200:],
        "bracket": content.replace(b"}", b" ", 1),
        "empty": b"",
    }
    file.unlink()  # the first one may still be mapped
    file.write_bytes(damaged[damage])
    np.testing.assert_array_equal(open_folder(root, 8).domains[0].inputs, images)
    assert len(decoded) == 10
    assert file.read_bytes() == content


def test_a_complete_cache_needs_no_lock(image_tree, decoded, cache_folder):
    root = image_tree(TREE)
    open_folder(root, 8)
    (lock,) = cache_folder.glob("*.lock")
    with FileLock(lock):
        open_folder(root, 8)
    assert len(decoded) == 5


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("SHIFTPROOF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "shiftproof"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "shiftproof"


def test_all_bad_images_are_reported_at_once(image_tree, cache_folder):
    root = image_tree({"art": {"cat": [f"{i:02}.png" for i in range(15)], "dog": ["0.png"]}})
    for i in range(2, 14):
        (root / "art" / "cat" / f"{i:02}.png").write_bytes(b"" if i == 2 else b"bad")
    with pytest.raises(UnreadableImagesError) as caught:
        open_folder(root, 8)
    lines = str(caught.value).splitlines()
    assert "12 image(s) cannot be used" in lines[0]
    assert lines[1].endswith("02.png: the file is empty")
    assert lines[10].endswith("11.png: not an image")
    assert lines[11].strip() == "and 2 more"
    assert len(caught.value.errors) == 12
    assert [file.suffix for file in cache_folder.iterdir()] == [".lock"]


def test_a_cache_folder_that_cannot_be_made_is_named(image_tree, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match=r"cannot write the image cache in .*file/cache.*set SHIFTPROOF_CACHE"):
        open_folder(image_tree(TREE), 8)


def test_too_small_a_disk_is_refused_before_decoding(image_tree, decoded, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 3 * 8 * 8 - 1))
    with pytest.raises(CacheError, match=r"take 0.00 GB decoded, but .* has 0.00 GB left; set SHIFTPROOF_CACHE"):
        open_folder(image_tree(TREE), 8)
    assert not decoded


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(image_tree, cache_folder):
    root = image_tree(TREE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CacheError, match="cannot write the image cache"):
            open_folder(root, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.suffix for file in cache_folder.iterdir()] == [".lock"]


PROCESS = """
import sys, time
from pathlib import Path
from shiftproof.data import cache, decode, open_folder
root, mine, other = map(Path, sys.argv[1:])
count = 0
def slow(path, size):
    global count
    count += 1
    time.sleep(0.1)
    return decode(path, size)
cache.decode = slow
mine.touch()
while not other.exists():
    time.sleep(0.01)
total = open_folder(root, 8).domains[0].inputs.sum()
print(total, count)
"""


def test_two_processes_decode_once(image_tree, tmp_path):
    root = image_tree(TREE)
    ready = [str(tmp_path / "first"), str(tmp_path / "second")]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(root), mine, other], stdout=subprocess.PIPE, text=True)
        for mine, other in (ready, reversed(ready))
    ]
    outputs = [process.communicate(timeout=HANG)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert sorted(int(output[1]) for output in outputs) == [0, 5]


def test_half_an_image_is_refused_whatever_pillow_is_told(image_tree, monkeypatch):
    root = image_tree({"art": {"cat": ["a.jpg", "b.jpg"], "dog": ["c.jpg"]}})
    path = root / "art" / "cat" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImagesError, match=r"b\.jpg"):
        open_folder(root, 8)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
