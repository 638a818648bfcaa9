import hashlib
import multiprocessing
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from plugin_files import forgotten
from shiftproof.algorithms import ALGORITHMS
from shiftproof.base import plugin_source, plugins
from shiftproof.base.plugins import (
    Plugin,
    PluginError,
    adopt_plugins,
    digests,
    import_plugins,
    imported,
    keep_sources,
    naming_plugins,
    plugin_of,
)
from shiftproof.base.registry import UnknownNameError
from shiftproof.optim import OPTIMIZERS

REGISTERS = "from shiftproof.algorithms import ALGORITHMS, ERM\nALGORITHMS.register('guest', ERM)\n"


@pytest.fixture(autouse=True)
def _forgotten():
    with forgotten():
        yield


@pytest.fixture
def write(tmp_path):
    def write(text, name="guest.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_file_registers_and_its_entries_know_it(write):
    file = write(REGISTERS)
    import_plugins([file])
    plugin = plugin_of(ALGORITHMS, "guest")
    assert (plugin.name, plugin.path) == ("guest.py", file)
    assert plugin.digest == hashlib.sha256(REGISTERS.encode()).hexdigest()
    assert plugin_of(ALGORITHMS, "erm") is None
    assert digests([(ALGORITHMS, "guest"), (OPTIMIZERS, "adam")]) == {"guest.py": plugin.digest}
    assert str(ALGORITHMS.place("guest")) == f"{file}, line 2"
    import_plugins([file, file])  # once more has no effect
    assert imported([file, "guest.py"]) == (plugin,)


def test_a_module_and_a_package_are_told_apart_by_their_sources(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write("", "guest_package/__init__.py")
    write(REGISTERS, "guest_package/inner.py")
    import_plugins(["guest_package.inner"])
    content = b"__init__.py\0\0inner.py\0" + REGISTERS.encode() + b"\0"  # also of what lies beside the module
    assert plugin_of(ALGORITHMS, "guest").digest == hashlib.sha256(content).hexdigest()
    write("from guest_package2 import inner\n", "guest_package2/__init__.py")
    write(REGISTERS.replace("'guest'", "'guest2'"), "guest_package2/inner.py")
    import_plugins(["guest_package2"])  # the package imports what registers
    first = plugin_of(ALGORITHMS, "guest2").digest
    (tmp_path / "guest_package2" / "other.py").write_text("x = 1")
    assert plugin_source.source_digest(sys.modules["guest_package2"]) != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"the plug-in guest.py registers nothing: add what it defines to a registry"),
        ("x = 1\nx +\n", r"cannot be imported: SyntaxError: invalid syntax, in .*guest.py, line 2"),
        ("import nothing_like_it\n", r"ModuleNotFoundError: No module named 'nothing_like_it', in .*guest.py, line 1"),
        ("\nimport torch\ntorch.zeros(-1)\n", r"cannot be imported: RuntimeError: .*, in .*guest.py, line 3"),
        ("import sys\nsys.exit(3)\n", r"cannot be imported: SystemExit: 3, in .*guest.py, line 2"),
        (
            REGISTERS.replace("'guest'", "'erm'"),
            r"algorithm 'erm' is registered already, in .*erm.py, line \d+; .*guest.py, line 2 registers it again",
        ),
    ],
)
def test_what_cannot_be_a_plugin_is_said_with_its_place(write, text, message):
    file = write(text)
    with pytest.raises(PluginError, match=message):
        import_plugins([file])
    with pytest.raises(PluginError, match=message):  # nothing is left of the first attempt
        import_plugins([file])


def test_a_plugin_that_fails_leaves_no_entry(write):
    file = write(REGISTERS + "1 / 0\n")
    with pytest.raises(PluginError, match=r"ZeroDivisionError: division by zero, in .*guest.py, line 3"):
        import_plugins([file])
    assert "guest" not in ALGORITHMS
    write(REGISTERS)
    import_plugins([file])
    assert "guest" in ALGORITHMS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py", r"the plug-in .*/missing.py cannot be read: No such file or directory"),
        ("./", r"cannot be read: Is a directory"),
        ("guest_missing", r"there is no module guest_missing; a file is named by its path, as in ./guest_missing.py"),
        ("guest_missing.part", r"there is no module guest_missing;"),
    ],
)
def test_what_is_not_there_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match=message):
        import_plugins([name])


def test_a_name_taken_by_another_plugin_names_both_files(write):
    first, second = write(REGISTERS), write(REGISTERS, "other/guest2.py")
    import_plugins([first])
    with pytest.raises(PluginError, match=rf"registered already, in {first}, line 2; {second}, line 2 registers"):
        import_plugins([second])
    assert plugin_of(ALGORITHMS, "guest").path == first


def test_two_files_of_one_name_are_refused_unless_they_are_equal(write):
    file = write(REGISTERS)
    import_plugins([file])
    import_plugins([write(REGISTERS, "copy/guest.py")])
    with pytest.raises(PluginError, match=r"two plug-ins are called guest.py: .*; rename one"):
        import_plugins([write(REGISTERS + "\n", "other/guest.py")])
    write(REGISTERS + "# changed\n")
    with pytest.raises(PluginError, match=r"guest.py has changed since this process imported it; start again"):
        import_plugins([file])


def test_what_it_prints_does_not_mix_with_the_output(write, capsys):
    import_plugins([write(REGISTERS + "print('hello')\n")])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


def test_what_it_prints_in_a_worker_is_dropped(capsys):
    source = (REGISTERS + "print('hello')\n").encode()
    adopt_plugins([Plugin("guest.py", hashlib.sha256(source).hexdigest(), "/nowhere/guest.py", source)])
    assert capsys.readouterr() == ("", "")
    assert "guest" in ALGORITHMS


def test_one_that_starts_processes_is_refused_and_they_are_ended(write):
    starts = "import time\nfrom multiprocessing import get_context\n"
    starts += "get_context('spawn').Process(target=time.sleep, args=(600,)).start()\n"
    with pytest.raises(PluginError, match=r"starts processes when it is imported, and every worker imports it"):
        import_plugins([write(REGISTERS + starts)])
    assert "guest" not in ALGORITHMS
    while multiprocessing.active_children():
        time.sleep(0.01)


def test_a_script_that_registers_is_not_run_again(write):
    file = write(
        "import sys\nimport shiftproof\n"
        + REGISTERS
        + "shiftproof.import_plugins([__file__])\n"
        + "from shiftproof.base.plugins import plugin_of\nprint(plugin_of(ALGORITHMS, 'guest').name)\n"
    )
    printed = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True).stdout
    assert printed == "guest.py\n"


def test_a_worker_takes_the_files_content_where_the_file_is_not():
    source = (REGISTERS + "def f():\n    raise KeyError('x')\n").encode()
    plugin = Plugin("guest.py", hashlib.sha256(source).hexdigest(), "/nowhere/guest.py", source)
    adopt_plugins([plugin, plugin])
    assert plugin_of(ALGORITHMS, "guest") == plugin
    import inspect

    assert inspect.getsource(sys.modules[f"shiftproof_plugin_guest-{plugin.digest[:8]}"].f).startswith("def f")


def test_a_worker_refuses_a_module_that_differs_from_the_drivers(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(REGISTERS, "guest_here.py")
    with pytest.raises(PluginError, match=r"guest_here differs from the driver's \(\w{8} here, 00000000 there\)"):
        adopt_plugins([Plugin("guest_here", "0" * 64)])
    with pytest.raises(PluginError, match="there is no module guest_there"):
        adopt_plugins([Plugin("guest_there", "0" * 64)])


def test_stores_keep_every_version_of_a_file(write, tmp_path):
    import_plugins([write(REGISTERS)])
    [plugin] = imported(["guest.py"])
    keep_sources([plugin, Plugin("a_module", "0" * 64)], tmp_path)
    keep_sources([Plugin("guest.py", "1" * 64, "guest.py", b"old")], tmp_path)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "plugins").iterdir()}
    assert kept == {f"guest-{plugin.digest[:8]}.py": REGISTERS.encode(), "guest-11111111.py": b"old"}


def test_an_unknown_name_names_the_plugin_it_needs():
    with (
        pytest.raises(
            PluginError, match=r"algorithm 'guest' comes from a plug-in that was not imported: give --import g.py"
        ),
        naming_plugins(["g.py"]),
    ):
        ALGORITHMS["guest"]
    with pytest.raises(UnknownNameError, match="unknown algorithm 'guest'"), naming_plugins([]):
        ALGORITHMS["guest"]


def test_entry_points_are_imported_once_and_a_broken_one_is_told(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(REGISTERS, "guest_good.py")
    write("1 / 0\n", "guest_bad.py")
    points = [
        EntryPoint("good", "guest_good", "shiftproof.plugins"),
        EntryPoint("bad", "guest_bad", "shiftproof.plugins"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins._import_installed.cache_clear()
    with pytest.warns(UserWarning, match=r"plug-in of an installed package: the plug-in guest_bad cannot be imported"):
        import_plugins()
    assert plugin_of(ALGORITHMS, "guest").name == "guest_good"
    import_plugins()
    plugins._import_installed.cache_clear()


def test_a_module_that_another_plugin_imported_is_its_own_plugin_too(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(REGISTERS, "guest_library.py")
    import_plugins([write("import guest_library\n", "uses.py")])
    assert plugin_of(ALGORITHMS, "guest").name == "uses.py"
    import_plugins("guest_library")
    assert plugin_of(ALGORITHMS, "guest").name == "guest_library"


def test_a_package_that_failed_half_way_is_imported_whole_when_mended(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write("from guest_half import a, b\n", "guest_half/__init__.py")
    write(REGISTERS, "guest_half/a.py")
    write("1 / 0\n", "guest_half/b.py")
    with pytest.raises(PluginError, match=r"ZeroDivisionError: division by zero, in .*b.py, line 1"):
        import_plugins(["guest_half"])
    write(REGISTERS.replace("'guest'", "'guest2'") + "# longer\n", "guest_half/b.py")
    import_plugins(["guest_half"])
    assert {"guest", "guest2"} <= set(ALGORITHMS)


def test_paths_of_any_form_name_one_file(write, tmp_path, monkeypatch):
    file = Path(write(REGISTERS + "1 / 0\n"))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(PluginError, match=rf"in {file}, line 3"):
        import_plugins("../guest.py")
    write(REGISTERS)
    import_plugins(Path("../guest.py"))
    assert plugin_of(ALGORITHMS, "guest").path == str(file)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize("start", ["subprocess.Popen(['sleep', '600'])", "os.fork() or time.sleep(600)"])
def test_a_process_of_any_kind_is_noticed_unless_it_has_ended(write, start):
    with pytest.raises(PluginError, match="starts processes when it is imported"):
        import_plugins([write(f"import os, subprocess, time\n{REGISTERS}{start}\n")])
    done = "import subprocess\nsubprocess.run(['true'], check=True)\n"
    import_plugins([write(REGISTERS + done, "other.py")])


def test_what_its_processes_print_does_not_mix_with_the_output(write, capfd):
    import_plugins([write(REGISTERS + "import subprocess\nsubprocess.run(['echo', 'hello'], check=True)\n")])
    assert capfd.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("name", "message"), [("", "the name of a plug-in is empty"), (".guest", "cannot be imported")]
)
def test_names_that_name_nothing_are_refused(name, message):
    with pytest.raises(PluginError, match=message):
        import_plugins([name])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "guest.py").write_bytes(b"x = 1\0")
    with pytest.raises(
        PluginError, match=r"cannot be imported: SyntaxError: source code (string )?cannot contain null bytes$"
    ):
        import_plugins([tmp_path / "guest.py"])
