"""What `shiftproof train` shows while it trains, and where it says its output went."""

import re

from shiftproof.cli import main
from shiftproof.training import read_result

RUN = ["train", "--target", "75", "--optimizer", "adam", "--steps", "4", "--checkpoint-freq", "2"]


def test_a_bar_shows_step_loss_and_validation_and_the_end_says_where_the_run_is(tmp_path, capsys):
    output = tmp_path / "one"
    assert main([*RUN, "--set", "data.batch_size=4", "--output", str(output)]) == 0
    printed = capsys.readouterr()
    shown = re.findall(r"\r(erm \+ adam: [^\r\n]*)", printed.err)
    last = read_result(output)["metrics"][-1]
    held_out = [parts["out"]["accuracy"] for name, parts in last["domains"].items() if name != "75"]
    validation = f"{100 * sum(held_out) / len(held_out):.1f}"
    assert "4/4" in shown[-1]
    assert f"loss {last['loss']:.3f}, validation {validation} % at step 4]" in shown[-1]
    assert printed.out.splitlines()[-1] == f"written: {output}, which evaluate, predict and export read"


def test_a_run_that_has_ended_says_so_without_a_bar(tmp_path, capsys):
    command = [*RUN, "--set", "data.batch_size=4", "--output", str(tmp_path / "one")]
    main(command)
    first = capsys.readouterr().out
    assert main(command) == 0
    again = capsys.readouterr()
    assert (again.out, "step/s" in again.err) == (first, False)
