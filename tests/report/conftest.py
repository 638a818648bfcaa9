"""Stores written by hand: results as training leaves them, with made-up metrics."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from shiftproof.files import write_json
from shiftproof.studies import Study
from shiftproof.studies.store import Store

LONG = "a domain with a name as long as names of folders can well be, if nobody stops them"
HOSTILE = '<img src=x onerror="alert(1)"> & $x_$'


def _metrics(study, spec):
    """Three evaluations, the second the best; values differ by optimizer, trial, setting and target."""
    start = 0.1 * study.optimizers.index(spec.optimizer) + 0.02 * spec.trial_seed + 0.03 * spec.hparam_seed
    start += 0.01 * study.data.domain_index(spec.targets[0])

    def score(accuracy):
        per_class = [accuracy - 0.01 * i for i in range(len(study.data.classes))]
        return {"count": 40, "accuracy": accuracy, "per_class": per_class}

    return [
        {
            "step": step,
            "loss": 2.0 - start - step / 10,
            "domains": {
                name: {"in": score(start + gain + 0.1), "out": score(start + gain + 0.2)}
                for name in study.data.domain_names
            },
        }
        for step, gain in ((2, 0.1), (4, 0.3), (6, 0.2))
    ]


@pytest.fixture(scope="session")
def write_store():
    """A function that writes a result for every run of a study but the missing; runs are named by their number."""

    def write(study, root, failed=(), missing=()):
        store = Store(root)
        for number, spec in enumerate(study.runs):
            if number in failed:
                store.record_failure(spec, f"the loss was nan at step 3; {HOSTILE}")
            elif number not in missing:
                result = {
                    "spec": asdict(spec),
                    "status": "finished",
                    "error": None,
                    "seconds": {"step": 2.0},
                    "passes": 6,
                    "versions": {"torch": "2.13.0", "numpy": "2.0.0"},
                    "metrics": _metrics(study, spec),
                }
                store.folder(spec).mkdir(parents=True)
                write_json(store.folder(spec) / "result.json", result)
        return store

    return write


@pytest.fixture(scope="session")
def hostile_study(tmp_path_factory):
    """A study on a data set whose names are long and hold what HTML and TeX give a meaning to."""
    root = tmp_path_factory.mktemp("data") / 'a "set" <b>'
    for domain in (LONG, HOSTILE):
        for name in [HOSTILE, *(f"class number {i}" for i in range(13))]:
            (root / domain / name).mkdir(parents=True)
            for image in range(5):
                Image.fromarray(np.full((8, 8, 3), image, np.uint8)).save(root / domain / name / f"{image}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIFTPROOF_CACHE", str(tmp_path_factory.mktemp("cache")))
        study = Study(
            dataset="folder", data_dir=root, optimizers=("sgd", "genie", "adam"), trials=2, steps=6, image_size=16,
            checkpoint_freq=2, fixed={"data.batch_size": 2},
        )  # fmt: skip
        assert study.runs
    return study
