"""Where caches are, also without a home, a passwd entry or a folder that can be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shiftproof.base import files

UNSET = ("HOME", "USER", "LOGNAME", "SHIFTPROOF_CACHE")
HOMELESS = """
import pwd
def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
"""
OPTIONS = "--dataset folder --target ink --image-size 8 --model small_conv --optimizer genie --steps 1"
TRAIN = ["train", *OPTIONS.split()]


@pytest.fixture(autouse=True)
def nothing_told():
    files._temporary_cache_folder.cache_clear()


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No variable says where caches are; temporary files have a folder of this test's."""
    for name in ("SHIFTPROOF_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path


def _command(folder, *options, **environment):
    """Run the command line as a user of no home and no name, who may enter no closed folder, even as root."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(HOMELESS)
    variables = {name: value for name, value in os.environ.items() if name not in UNSET}
    variables |= {"PYTHONPATH": os.pathsep.join([str(folder / "site"), *sys.path]), "TMPDIR": str(folder / "temporary")}
    command = [sys.executable, "-m", "shiftproof", *map(str, options)]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv takes root's ways around modes away, and is not here")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, env={**variables, **environment}, capture_output=True, text=True, check=False)


def test_platformdirs_names_the_place(unset, monkeypatch):
    monkeypatch.setenv("HOME", str(unset / "home"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: unset / "cache of" / name)
    assert files.cache_folder() == unset / "cache of" / "shiftproof"
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert files.cache_folder() == unset / "home" / ".cache" / "shiftproof"


def test_a_home_that_cannot_be_written_is_replaced_and_that_is_said_once(unset, monkeypatch, capsys):
    (unset / "file").touch()
    monkeypatch.setenv("HOME", str(unset / "file"))
    own = unset / "temporary" / f"shiftproof-{os.getuid()}"
    for _ in range(2):
        assert files.cache_folder() == own
    reason = f"{unset / 'file' / '.cache' / 'shiftproof'} cannot be written"
    told = f"so caches are in {own}; set SHIFTPROOF_CACHE to a folder that can be written for another place"
    assert capsys.readouterr().err == f"shiftproof: {reason}, {told}\n"
    assert own.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_serves_what_it_holds(unset, monkeypatch):
    monkeypatch.setenv("HOME", str(unset))
    monkeypatch.setattr(files, "_can_write", lambda folder: False)
    (unset / ".cache" / "shiftproof").mkdir(parents=True)
    (unset / ".cache" / "shiftproof" / "made.npy").touch()
    assert files.cache_folder(holding="made.npy") == unset / ".cache" / "shiftproof"
    assert files.cache_folder(holding="other.npy").parent == unset / "temporary"


@pytest.mark.parametrize("what", ["writable by all", "a link"])
def test_a_temporary_folder_that_others_can_write_is_refused(what, unset, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    own = unset / "temporary" / f"shiftproof-{os.getuid()}"
    if what == "a link":
        (unset / "elsewhere").mkdir(mode=0o700)
        own.symlink_to(unset / "elsewhere")
    else:
        own.mkdir()
        own.chmod(0o777)
    with pytest.raises(OSError, match=rf"{own} is not this user's alone; set SHIFTPROOF_CACHE"):
        files.cache_folder()


def test_what_the_variable_says_is_taken_as_it_is(unset, monkeypatch):
    monkeypatch.setenv("SHIFTPROOF_CACHE", "/dev/null/cache")
    assert files.cache_folder() == Path("/dev/null/cache")
    monkeypatch.setenv("SHIFTPROOF_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(OSError, match="SHIFTPROOF_CACHE is ~nobody-of-this-name/cache: Could not determine home"):
        files.cache_folder()


FILES = [f"{letter}.png" for letter in "abcde"]
CLASSES = {"round": FILES, "long": FILES}


def test_a_run_without_a_home_keeps_its_images_beside_temporary_files(image_tree, tmp_path):
    root = image_tree({"ink": CLASSES, "oil": CLASSES})
    (tmp_path / "temporary").mkdir()
    cxx = {"CXX": "/bin/false", "PATH": os.environ["PATH"]}  # no need to wait for the kernel
    done = _command(tmp_path, *TRAIN, "--data-dir", root, "--output", tmp_path / "out", **cxx)
    assert done.returncode == 0, done.stderr
    own = tmp_path / "temporary" / f"shiftproof-{os.getuid()}"
    assert done.stderr.count(f"shiftproof: there is no home folder, so caches are in {own}; set SHIFTPROOF_CACHE") == 1
    assert len(list(own.glob("shapes-*.npy"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_cache_that_is_chosen_and_closed_ends_with_one_line(image_tree, tmp_path):
    root, closed = image_tree({"ink": CLASSES, "oil": CLASSES}), tmp_path / "closed"
    closed.mkdir(mode=0)
    (tmp_path / "temporary").mkdir()
    done = _command(
        tmp_path, *TRAIN, "--data-dir", root, "--output", tmp_path / "out", SHIFTPROOF_CACHE=str(closed / "cache")
    )
    assert done.returncode == 1
    [look, line] = done.stderr.splitlines()
    assert "treated as" in look
    assert line.startswith(f"shiftproof: error: cannot write the image cache in {closed / 'cache'}: [Errno 13]")
    assert line.endswith("set SHIFTPROOF_CACHE to another folder")


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_genie_trains_without_its_kernel_where_the_cache_is_closed(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    options = ["--target", "0", "--optimizer", "genie", "--steps", "1", "--batch-size", "2"]
    done = _command(tmp_path, "train", *options, "--output", tmp_path / "out", SHIFTPROOF_CACHE=str(closed))
    assert done.returncode == 0, done.stderr
    assert "accuracy on 0, unseen in training" in done.stdout
