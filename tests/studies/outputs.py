"""What a study leaves in its output, for tests that compare two of them."""

import json
from pathlib import Path

WRITTEN = ("metrics.jsonl", "model.json", "model.safetensors", "predictions.npz")


def state_of(output):
    """All that a study leaves, but for times."""
    rows = rows_of(output)
    results = {}
    for folder in sorted((output / "runs").iterdir()):
        result = json.loads((folder / "result.json").read_text())
        written = [(folder / name).read_bytes() for name in WRITTEN]
        results[folder.name] = {**result, "seconds": None}, written
    return [{**row, "seconds": None} for row in rows], results


def rows_of(output):
    """The lines of its `runs.jsonl`."""
    return [json.loads(line) for line in (Path(output) / "runs.jsonl").read_text().splitlines()]
