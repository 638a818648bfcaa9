"""Make up a folder of pictures: `python -m benchmarks.check_gpu.pictures FOLDER SIDE DOMAIN=NUMBER ...`.

JPEGs of smooth noise, about as large as photographs of their side, in as many classes as PACS has.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_GRAIN = 4  # pixels of a picture to a number of noise


def make_pictures(folder: Path, side: int, counts: dict[str, int]) -> None:
    """Write `<domain>/<class>/<number>.jpg`.

    Args:
        folder: made if need be.
        side: of a picture, in pixels.
        counts: pictures by domain, spread over the classes.
    """
    for domain in counts:
        for name in CLASSES:
            (folder / domain / name).mkdir(parents=True)

    def write(job: tuple[str, int, int]) -> None:
        domain, number, seed = job
        noise = np.random.default_rng(seed).integers(0, 256, (-(-side // _GRAIN),) * 2 + (3,), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / domain / CLASSES[number % len(CLASSES)] / f"{number:05}.jpg", quality=90)

    jobs = [(domain, number) for domain, count in counts.items() for number in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, [(*job, seed) for seed, job in enumerate(jobs)]))


if __name__ == "__main__":
    target, pixels, *domains = sys.argv[1:]
    make_pictures(Path(target), int(pixels), {d: int(n) for d, _, n in (text.partition("=") for text in domains)})
