import json
from functools import partial

import pytest
import torch
from torch.optim import AdamW

from shiftproof.bench import bench_optimizer, optimizer, optimizer_table
from shiftproof.cli import main
from shiftproof.optim import GENIE
from shiftproof.optim.genie import FORMS, fused_cpu

STATE_BYTES = {
    "AdamW, fused": 8,
    "SGD, fused": 4,
    "GENIE paper, fused": 8,
    "GENIE released, for-loop": 8,
    "GENIE paper, foreach": 8,
    "GENIE paper, fused, bfloat16 moments": 4,
    "GENIEAdamW, fused": 8,
    "GENIEAdamW, fused, bfloat16 moments": 4,
    "SAM around Adam, update": 8,
    "GENIE as published": 12,
}


def test_every_row_is_measured_beside_fused_adamw():
    result = bench_optimizer(elements=1000, rounds=2)
    rows = {row["name"]: row for row in result["rows"]}
    labels = ["GENIEAdamW", *(f"GENIE {form}" for form in FORMS)]
    assert rows.keys() >= {f"{label}, {name}" for label in labels for name in ("fused", "foreach", "for-loop")}
    assert rows["AdamW, fused"]["ratio"] == 1
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["milliseconds"] / rows["AdamW, fused"]["milliseconds"])
        assert 0 < row["least"] <= row["milliseconds"] <= row["most"]
        assert row["bandwidth"] > 0
    for name, expected in STATE_BYTES.items():
        assert rows[name]["state_bytes"] == expected, name
    assert result["setting"]["parameters"] == 1000
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = optimizer_table(result).splitlines()
    lesser_builds = 2 * fused_cpu.instruction_set()
    assert sum(line.startswith("GENIE ") for line in lines) == 2 * 3 + 2 + 2 + lesser_builds


def test_the_command_steps_the_parameters_of_a_model(tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert main(["bench", "optimizer", "--model", "small_conv", "--rounds", "1", "--output", str(output)]) == 0
    assert "AdamW, fused" in capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["setting"]["tensors"] == 14  # three convolutions and normalisations, one classifier
    assert result["setting"]["parameters"] == 64 * 1000 + 1000 + 144 * 3 + 16 + 4640 + 18496 + 2 * (16 + 32 + 64)


def test_graphs_step_alike_and_are_compared_with_a_graph(monkeypatch):
    """Without a GPU there are none: what replays one is the step itself, which reads where it read before."""
    parameters = {}

    def built(name, cls):
        def build(params, **options):
            parameters[name] = params
            return cls(params, **options)

        return optimizer._Candidate(name, build, {"lr": 0.01, "fused": True})

    def captured(step_of):
        [group] = step_of.param_groups
        grads = [p.grad for p in group["params"]]

        def replay():
            for p, grad in zip(group["params"], grads, strict=True):
                p.grad = grad
            step_of.step()

        return replay

    classes = {"AdamW, fused": AdamW, "GENIE paper, fused": partial(GENIE, seed=0)}
    kinds = [built(name + end, cls) for name, cls in classes.items() for end in ("", ", graph")]
    monkeypatch.setattr(optimizer, "_candidates", lambda best_build, graphs: kinds)
    monkeypatch.setattr(optimizer, "_captured", captured)
    rows = {row["name"]: row for row in bench_optimizer(elements=1000, rounds=3)["rows"]}
    for name in classes:
        for end in ("", ", graph"):
            baseline = rows[f"AdamW, fused{end}"]["milliseconds"]
            assert rows[name + end]["ratio"] == pytest.approx(rows[name + end]["milliseconds"] / baseline)
        [eager], [replayed] = parameters[name], parameters[f"{name}, graph"]
        assert torch.equal(eager, replayed)  # of the same gradients, one after the other
        assert eager.count_nonzero() > 900


def test_graphs_are_of_fused_steps_and_only_where_they_can_be():
    def names(graphs):
        return [c.name for c in optimizer._candidates(0, graphs) if c.graph]

    assert names(False) == []
    replayed = ["AdamW, fused", "GENIEAdamW, fused", *(f"GENIE {form}, fused" for form in FORMS)]
    assert names(True) == [f"{name}, graph" for name in replayed]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number above 0"),
        ({"elements": 0}, "elements must be a whole number above 0"),
        ({"model": "resnet19"}, "unknown model 'resnet19'"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bench_optimizer(**options)
