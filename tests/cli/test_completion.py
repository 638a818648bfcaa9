"""The script that completes commands in a shell."""

import subprocess
import sys

import pytest

from shiftproof.algorithms import ALGORITHMS
from shiftproof.cli import main
from shiftproof.cli.completion import SHELLS


def _script(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_commands_options_and_names(shell, capsys):
    script = _script(shell, capsys)
    for word in ("compare", "sensitivity", "hparam-trials", "genie_released", "trackers", *ALGORITHMS):
        assert word in script


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("stu", {"study"}),
        ("figure bal", {"balance"}),
        ("compare --optimizers g", {"gsam", "gam", "genie", "genie_released", "genie_adamw"}),
        ("compare --averag", {"--averaging"}),
        ("figure balance --averag", set()),
        ("study run conv", {"convergence"}),
        ("study plan mi", {"mine.yaml"}),
        ("compare --import mi", {"mine.yaml"}),
        ("list mod", {"models"}),
        ("data get pa", {"pacs"}),
        ("data check --dataset vl", {"vlcs"}),
        ("compare --track ten", {"tensorboard"}),
        ("study run convergence --scale s", {"small", "smoke"}),
        ("study table --format l", {"latex"}),
        ("study comb", {"combine"}),
        ("study combine --ways diwa_", {"diwa_greedy"}),
        ("export mine --format o", {"onnx"}),
        ("predict mi", {"mine.yaml"}),
        ("study table --rule or", {"oracle"}),
        ("train --model small", {"small_conv", "small_lenet"}),
    ],
)
def test_bash_completes(words, found, capsys, tmp_path):
    (tmp_path / "script").write_text(_script("bash", capsys))
    (tmp_path / "mine.yaml").touch()
    line = ["shiftproof", *words.split()]
    code = (
        f"source {tmp_path / 'script'}; COMP_WORDS=({' '.join(line)}); COMP_CWORD={len(line) - 1}; "
        '_shtab_shiftproof 2>/dev/null; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(done.stdout.split()) == found


def test_an_unknown_shell_is_refused(capsys):
    assert main(["--print-completion", "bsh"]) == 1
    assert (
        "unknown shell 'bsh'. Did you mean bash or zsh or tcsh? Valid names: bash, zsh, tcsh" in capsys.readouterr().err
    )


def test_the_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert "shtab is not installed: pip install 'shiftproof[bench]'" in capsys.readouterr().err
