import json

import pytest

from shiftproof.bench import bench_optimizer, optimizer_table
from shiftproof.cli import main
from shiftproof.optim.genie import FORMS, fused_cpu

STATE_BYTES = {
    "AdamW, fused": 8,
    "SGD, fused": 4,
    "GENIE paper, fused": 8,
    "GENIE released, for-loop": 8,
    "GENIE paper, foreach": 8,
    "GENIE paper, fused, bfloat16 moments": 4,
    "SAM around Adam, update": 8,
    "GENIE as published": 12,
}


def test_every_row_is_measured_beside_fused_adamw():
    result = bench_optimizer(elements=1000, rounds=2)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() >= {f"GENIE {form}, {name}" for form in FORMS for name in ("fused", "foreach", "for-loop")}
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
