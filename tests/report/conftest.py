"""Stores written by hand: results as training leaves them, with made-up metrics."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from shiftproof.base.files import write_json
from shiftproof.studies import Store, Study, make_plan, read_plan

LONG = "a domain with a name as long as names of folders can well be, if nobody stops them"
HOSTILE = '<img src=x onerror="alert(1)"> & $x_$'


def _metrics(plan, grid, spec):
    """Three evaluations, the second the best; values differ by optimizer, trial, setting, target and data set."""
    optimizers = list(dict.fromkeys(method.optimizer for method in grid.methods))
    optimizer = optimizers.index(spec.optimizer)
    # differences between methods vary by trial, so that they have intervals
    start = 0.1 * optimizer + (0.02 + 0.002 * optimizer) * spec.trial_seed + 0.03 * spec.hparam_seed
    start += 0.01 * grid.domains.index(spec.targets[0]) + 0.05 * plan.grids.index(grid)

    def score(accuracy):
        per_class = [accuracy - 0.01 * i for i in range(len(grid.classes) or 7)]
        return {"count": 40, "accuracy": accuracy, "per_class": per_class}

    return [
        {
            "step": spec.steps * third // 3,
            "loss": 2.0 - start - third / 5,
            "domains": {
                name: {"in": score(start + gain + 0.1), "out": score(start + gain + 0.2)} for name in grid.domains
            },
        }
        for third, gain in ((1, 0.1), (2, 0.3), (3, 0.2))
    ]


@pytest.fixture(scope="session")
def write_store():
    """A function that writes a plan and a result for every run of it but the missing, and reads them back.

    Runs are named by their number in the plan.
    """

    def write(plan, root, failed=(), missing=()):
        store = Store(root)
        root.mkdir(parents=True, exist_ok=True)
        plan.write(root)
        runs = [(grid, spec) for grid in plan for spec in grid.runs]
        for number, (grid, spec) in enumerate(runs):
            if number in failed:
                store.record_failure(spec, f"the loss was nan at step 3; {HOSTILE}")
            elif number not in missing:
                result = {
                    "spec": asdict(spec),
                    "status": "finished",
                    "error": None,
                    "seconds": {"step": 2.0},
                    "passes": spec.steps,
                    "versions": {"torch": "2.13.0", "numpy": "2.0.0"},
                    "metrics": _metrics(plan, grid, spec),
                }
                store.folder(spec).mkdir(parents=True, exist_ok=True)
                write_json(store.folder(spec) / "result.json", result)
        return store.results(read_plan(root))

    return write


@pytest.fixture(scope="session")
def hostile_plan(tmp_path_factory):
    """A study's plan on a data set whose names are long and hold what HTML and TeX give a meaning to."""
    root = tmp_path_factory.mktemp("data") / 'a "set" <b>'
    for domain in (LONG, HOSTILE):
        for name in [HOSTILE, *(f"class number {i}" for i in range(13))]:
            (root / domain / name).mkdir(parents=True)
            for image in range(5):
                Image.fromarray(np.full((8, 8, 3), image, np.uint8)).save(root / domain / name / f"{image}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIFTPROOF_CACHE", str(tmp_path_factory.mktemp("cache")))
        study = Study(
            datasets=("folder",), data_dir=root, optimizers=("sgd", "genie", "adam"), trials=2, steps=6, image_size=16,
            checkpoint_freq=2, fixed={"data.batch_size": 2},
        )  # fmt: skip
        return make_plan(study)


@pytest.fixture(scope="session")
def absent_plan():
    """A plan on two published data sets that are not at hand."""
    study = Study(
        name="published", datasets=("PACS", "VLCS"), optimizers=("adam", "sam", "genie"), published="optimizers",
        targets=("art_painting", "sketch", "LabelMe"), selection=("oracle", "training_domain"), trials=2, steps=6,
        checkpoint_freq=2, model="small_conv", image_size=8,
    )  # fmt: skip
    return make_plan(study, absent=True)
