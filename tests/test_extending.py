"""The examples of docs/how_to/extending.md work from the command line, from a study file, in workers and on Ray."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from plugin_files import forgotten, write_examples
from shiftproof.algorithms import ALGORITHMS
from shiftproof.cli import main
from shiftproof.models import build_network
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import PROTOCOLS, select
from studies.outputs import rows_of

FIELDS = {
    "tilted": {"algorithms": ["erm", "tilted"], "fixed": {"algorithm.tilt": 2}},
    "lion": {"optimizers": ["adam", "lion"]},
    "npz_folder": {"datasets": ["npz_folder"], "data_dir": "archives", "targets": ["b"]},
    "strided_net": {"model": "strided_net", "algorithms": ["miro"]},
    "worst_source": {"selection": ["worst_source", "training_domain"]},
}
"""What of a study each example is used for."""
SHORT = {"optimizers": ["adam"], "targets": ["75"], "trials": 1, "steps": 4, "checkpoint_freq": 2}


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The files of the examples, in the current folder, and data for that of a data set; forgets them at the end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archives").mkdir()
    random = np.random.default_rng(0)
    for domain in "abc":
        images, labels = random.integers(0, 256, (30, 16, 16), dtype=np.uint8), np.arange(30) % 3
        np.savez(tmp_path / "archives" / f"{domain}.npz", images=images, labels=labels)
    with forgotten():
        yield write_examples(tmp_path)


def test_every_example_is_tried(examples):
    assert list(examples) == list(FIELDS)


def _options(fields):
    options = []
    for name, value in fields.items():
        if name == "fixed":
            options += [part for key, one in value.items() for part in ("--set", f"{key}={one}")]
        else:
            values = value if isinstance(value, list) else [value]
            options += [f"--{name.replace('_', '-')}", *map(str, values)]
    return options


@pytest.mark.parametrize("name", FIELDS)
def test_an_example_works_from_the_command_line_and_in_workers(examples, name, capsys):
    assert (
        main(
            [
                "compare",
                "--dataset",
                "rotated_digits",
                "--import",
                f"{name}.py",
                *_options({**SHORT, **FIELDS[name]}),
                "--output",
                "out",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    rows = rows_of("out")
    assert {row["status"] for row in rows} == {"finished"}
    [kept] = [file.name for file in (examples[name].parent / "out/plugins").iterdir()]
    digest = kept.removeprefix(f"{name}-").removesuffix(".py")
    specs = [json.loads(file.read_text()) for file in (examples[name].parent / "out/runs").glob("*/spec.json")]
    if name == "worst_source":  # belongs to the table, not to a run
        assert json.loads(Path("out/study.json").read_text())["plugins"][f"{name}.py"].startswith(digest)
        assert [spec["score_targets"] for spec in specs] == [True]
        assert {"worst_source", "oracle"} < set(rows[0]["selection"])
        assert "selection worst_source" in printed
    else:
        assert any(spec["plugins"].get(f"{name}.py", "").startswith(digest) for spec in specs)
        assert any(row["versions"].get(f"{name}.py") == digest for row in rows)


@pytest.mark.parametrize("name", FIELDS)
def test_an_example_works_from_a_study_file(examples, name, capsys):
    study = {"name": name, "imports": [f"{name}.py"], **SHORT, **FIELDS[name]}
    (examples[name].parent / "own.yaml").write_text(json.dumps(study))  # JSON is YAML
    assert main(["study", "plan", "own.yaml"]) == 0
    assert main(["study", "run", "own.yaml", "--output", "out", "--jobs", "1"]) == 0
    assert main(["study", "table", "out"]) == 0
    capsys.readouterr()


def test_an_example_works_on_ray(examples, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    fields = {**SHORT, **FIELDS["tilted"], "algorithms": ["tilted"]}
    local = ["compare", "--dataset", "rotated_digits", "--import", "tilted.py", *_options(fields)]
    assert main([*local, "--output", "here"]) == 0
    examples["tilted"].rename(examples["tilted"].with_name("moved.py"))  # workers take the content, not the file
    assert main([*local, "--output", "there", "--backend", "ray"]) == 1  # but the driver needs it
    examples["tilted"].with_name("moved.py").rename(examples["tilted"])
    assert main([*local, "--output", "there", "--backend", "ray"]) == 0
    results = [json.loads(next(Path(out).glob("runs/*/result.json")).read_text()) for out in ("here", "there")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    capsys.readouterr()


def test_the_examples_compute_what_they_say(examples):
    from shiftproof.base.plugins import import_plugins

    import_plugins(map(str, examples.values()))
    # the tilted loss of equal losses is that loss; with a large tilt it is the greatest
    network = build_network("strided_net", (1, 16, 16), 3, dropout=0.0, seed=0)
    batches = [(torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    losses = torch.stack(ALGORITHMS["erm"](network, 3).domain_losses(batches)).double()
    for tilt in (0.5, 40.0):
        found = ALGORITHMS["tilted"](network, 3, tilt=tilt).objective(batches)
        assert found.item() == pytest.approx(((losses * tilt).exp().mean().log() / tilt).item(), rel=1e-5)
    with pytest.raises(ValueError, match="Invalid tilt value: 0; it must be above 0"):
        ALGORITHMS["tilted"](network, 3, tilt=0)
    # two steps of Lion by hand
    p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    lion = OPTIMIZERS["lion"]([p], lr=0.1, weight_decay=0.5)
    gradients = [torch.tensor([3.0, -1.0]).double(), torch.tensor([-2.0, -1.0]).double()]
    expected, average = p.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for gradient in gradients:
        p.grad = gradient.clone()
        lion.step()
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (0.9 * average + 0.1 * gradient).sign()
        average = 0.99 * average + 0.01 * gradient
    torch.testing.assert_close(p.detach(), expected)
    # the rule looks at the worst source
    record = {"accuracy": 0.5, "per_class": [0.5]}

    def at(step, a, b):
        return {
            "step": step,
            "domains": {"a": {"out": {"accuracy": a}}, "b": {"out": {"accuracy": b}}, "t": {"in": record}},
        }

    chosen = select("worst_source", [at(1, 0.2, 0.9), at(2, 0.4, 0.5), at(3, 0.4, 0.4)], ["t"], PROTOCOLS["shiftproof"])
    assert (chosen["step"], chosen["validation"]) == (2, 0.4)
