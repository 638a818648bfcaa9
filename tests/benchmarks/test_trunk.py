from safetensors.torch import save_file

from benchmarks.trunk import main
from shiftproof.base.files import read_json
from shiftproof.models import build_network


def test_kept_and_computed_runs_take_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "lenet.safetensors"
    save_file(build_network("small_lenet", (1, 28, 28), 10, dropout=0.0, seed=0).featurizer.state_dict(), weights)
    options = f"--model small_lenet --weights {weights} --batch-size 4 --steps 3 --rounds 2 --train head"
    main([*options.split(), "--output", str(tmp_path / "out.json")])
    result = read_json(tmp_path / "out.json", "")
    [part] = result["parts"].values()
    assert result["steps"] == 3
    assert [len(part[name]) for name in ("kept", "computed")] == [2, 2]
    assert part["ratio"] == sum(part["computed"]) / sum(part["kept"])
    assert len(list((tmp_path / "cache").glob("trunk-*"))) == 1
    assert "head" in capsys.readouterr().out
