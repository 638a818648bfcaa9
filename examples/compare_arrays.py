"""Compare methods on arrays of your own: each hospital in turn is left out of training, and scored."""

from pathlib import Path

import numpy as np

from shiftproof.data import DATASETS, DatasetEntry, DomainDataset, from_arrays
from shiftproof.report import write_report
from shiftproof.studies import Results, Study, run_study
from shiftproof.tables import as_text


def hospitals(data_dir: Path | None = None, image_size: int | None = None) -> DomainDataset:
    """Whether a patient is ill, from 20 measurements at each of four hospitals with devices of their own."""
    random = np.random.default_rng(0)
    signs = random.normal(size=20)
    domains = {}
    for name in ("north", "east", "south", "west"):
        ill = random.integers(0, 2, 200)
        device = random.normal(size=20)
        domains[name] = (random.normal(size=(200, 20)) + 0.5 * ill[:, None] * signs + device, ill)
    return from_arrays("hospitals", domains, classes=["well", "ill"])


DATASETS.register("hospitals", DatasetEntry(hospitals, kind="vectors", embedded=True))


def main(output: Path, steps: int = 100, trials: int = 3) -> Results:
    study = Study(
        datasets=("hospitals",), algorithms=("erm", "coral"), optimizers=("adam",), steps=steps, trials=trials
    )
    return run_study(study, output, workers=2)


if __name__ == "__main__":  # the worker processes import this file too
    folder = Path("runs/hospitals")
    results = main(folder)
    print(as_text(results))
    print(f"written: {write_report(results, folder)}")
