"""Data loading compared with the usual way: images per second, and a run's time for data and evaluation.

The usual way is DomainBed's: the workers of one loader per domain decode and augment image by image, and every split
of every domain is evaluated. A third way keeps the same made-up batch on the device for every step, to show the speed
of training if data cost nothing. Network, training step, scoring and memory format are the same for all.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from itertools import count, islice
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset
from torchvision import transforms

from shiftproof.algorithms import Batch
from shiftproof.data import DomainDataset, DomainFiles, Split, labelled_images, split_domain, upright
from shiftproof.models import Network
from shiftproof.studies import Study, make_plan, open_data
from shiftproof.training import (
    EVALUATION_BATCH,
    GPU_EVALUATION_BATCH,
    Inputs,
    RunSpec,
    build_steps,
    evaluate,
    reproducible,
)

RUNS = ((200, 40), (5001, 300))
"""Steps, and steps between evaluations, of the runs whose time is computed."""
WARM_UP = 3  # batches before the clock starts, while workers start and fill their queues
EVALUATION_BATCHES = 16
_ENDLESS = 2**40
_NOTES = (
    "Means over rounds in which the ways take turns; least and most in brackets.",
    "Training has one thread. shiftproof prepares batches on it and leaves the other cores to other runs;",
    "the usual way runs its loader workers on them, and on all cores when data alone is measured.",
    "Data is the time that training waits for data; on a GPU it is the time in which the host queues its batches.",
    "Decoding the files into the cache, once per data set, is not counted.",
    "shiftproof evaluates the splits that selection rules read, the usual way all splits of all domains, equally",
    f"often; {EVALUATION_BATCHES} batches of up to {EVALUATION_BATCH} images are timed and scaled to all images. On a",
    f"GPU, batches have up to {GPU_EVALUATION_BATCH} images, except in the usual way.",
)


@dataclass(frozen=True)
class Costs:
    """The costs that make up the time of a run.

    Attributes:
        data: seconds per 100 steps that training waits for its batches.
        training: seconds per 100 steps for forward pass, backward pass and optimizer.
        evaluation: seconds of one evaluation.
        last_evaluation: seconds of the evaluation after the last step.
    """

    data: float
    training: float
    evaluation: float
    last_evaluation: float


def run_time(costs: Costs, steps: int, checkpoint_freq: int) -> dict[str, float]:
    """Return the ``seconds`` of a run and the shares of ``data``, ``training`` and ``evaluation``, which sum to 1.

    Args:
        costs: the costs.
        steps: number of updates.
        checkpoint_freq: steps between evaluations; the last step is always evaluated.
    """
    parts = {
        "data": costs.data * steps / 100,
        "training": costs.training * steps / 100,
        "evaluation": costs.evaluation * ((steps - 1) // checkpoint_freq) + costs.last_evaluation,
    }
    seconds = sum(parts.values())
    return {"seconds": seconds, **{part: value / seconds for part, value in parts.items()}}


def bench_data(study: Study, *, workers: int, steps: int = 20, rounds: int = 3) -> dict[str, Any]:
    """Time the first run of a study with batches from shiftproof, from the usual way and made up, in turn.

    Args:
        study: a study on a folder data set.
        workers: processes that decode in the usual way; training loaders share them, with at least one each.
        steps: steps timed per round.
        rounds: rounds of each way.

    Returns:
        JSON values: ``setting``, ``notes`` and ``ways``. Each way has ``images_per_second`` of data alone, the
        ``speed`` of training relative to that with data for nothing, ``evaluated`` images (in one evaluation, in the
        last), ``costs`` (see `Costs`), ``runs`` (see `run_time`; with ``steps``), and all ``rounds``, with the numbers
        of ``images`` that were timed.

    Raises:
        ValueError: the data set is not a folder of images, or a number is below 1.
    """
    for name, number in (("workers", workers), ("steps", steps), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {number}")
    data = open_data(study, study.datasets[0])
    root = data.root
    if root is None:
        raise ValueError("the data path is measured on a folder of images")
    spec = make_plan(study).runs[0]
    trainer = _Trainer(data, spec, study.weights_file, study.device_here())
    loaders = _Loaders(data, spec, trainer.network, root, workers, trainer.device)
    cache = _Cache(data, spec, trainer)
    ways: dict[str, _Way] = {"shiftproof": cache, "usual way": loaders, "data for nothing": _MadeUp(cache)}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    with reproducible():  # as in runs
        for _ in range(rounds):
            for name, way in ways.items():
                measured[name].append(_round(way, trainer, steps))
    return {
        "setting": {
            "dataset": spec.dataset,
            "target": "+".join(spec.targets),
            "model": spec.model,
            "image size": data.input_shape[-1],
            "images per domain and step": spec.axis("data")["batch_size"],
            "rounds": rounds,
            "steps per round": steps,
            "workers per training loader": loaders.training_workers,
            "workers of evaluation": workers,
            "precision": spec.precision,
            "compiled": spec.compile,
            "device": str(study.device) if trainer.device.type == "cpu" else torch.cuda.get_device_name(trainer.device),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "notes": list(_NOTES),
        "ways": {name: _summary(way, measured[name], measured["data for nothing"]) for name, way in ways.items()},
    }


def data_table(result: dict[str, Any]) -> str:
    """Return the result of `bench_data` as text."""
    ways = result["ways"].values()

    def row(label: str, cells: Iterable[str]) -> str:
        return f"{label:38}" + "".join(f"{cell:>26}" for cell in cells)

    def spread(values: Sequence[float]) -> str:
        return f"{fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    def over_rounds(*entries: str) -> list[str]:
        return [spread([sum(r[entry] for entry in entries) for r in way["rounds"]]) for way in ways]

    lines = [
        fill(", ".join(f"{name} {value}" for name, value in result["setting"].items()), 120),
        "",
        row("", result["ways"]),
        row("data alone, images per second", over_rounds("images_per_second")),
        row("100 steps without evaluation, s", over_rounds("data", "training")),
        row("  of these, waiting for data", over_rounds("data")),
        row("  speed, of that with data for nothing", [f"{100 * way['speed']:.1f} %" for way in ways]),
        row("one evaluation, s", over_rounds("evaluation")),
        row("  images", [str(way["evaluated"][0]) for way in ways]),
    ]
    for position, (steps, checkpoint_freq) in enumerate(RUNS):
        runs = [way["runs"][position] for way in ways]
        lines.append(row(f"{steps} steps, evaluated every {checkpoint_freq}, s", [f"{r['seconds']:.0f}" for r in runs]))
        lines += [row(f"  {part}", [f"{100 * r[part]:.1f} %" for r in runs]) for part in ("data", "evaluation")]
    return "\n".join([*lines, "", *result["notes"]])


def _summary(way: _Way, rounds: list[dict[str, Any]], unhindered: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(entry: str) -> float:
        return fmean(r[entry] for r in rounds)

    def seconds(r: dict[str, Any]) -> float:
        return float(r["data"] + r["training"])

    costs = Costs(*(mean(field.name) for field in fields(Costs)))
    return {
        "images_per_second": mean("images_per_second"),
        "speed": fmean(seconds(best) / seconds(own) for best, own in zip(unhindered, rounds, strict=True)),
        "evaluated": way.evaluated,
        "costs": asdict(costs),
        "runs": [{"steps": steps, **run_time(costs, steps, checkpoint_freq)} for steps, checkpoint_freq in RUNS],
        "rounds": rounds,
    }


def _round(way: _Way, trainer: _Trainer, steps: int) -> dict[str, Any]:
    """Time data alone, training and evaluation once. Streams are closed, so that workers do not slow other ways."""
    with closing(way.training()) as stream:
        list(islice(stream, WARM_UP))
        begin = time.perf_counter()
        data_images = sum(_images(batches) for batches in islice(stream, steps))
        trainer.wait()
        data_alone = time.perf_counter() - begin

    waited = trained = 0.0
    trained_images = 0
    with closing(way.training()) as stream:
        for step in range(1 - WARM_UP, steps + 1):
            begin = time.perf_counter()
            batches = next(stream)
            ready = time.perf_counter()
            trainer.step(batches)
            if step in (0, steps):
                trainer.wait()  # as a run does at its evaluations
            if step > 0:
                waited += ready - begin
                trained += time.perf_counter() - ready
                trained_images += _images(batches)

    with closing(way.evaluation()) as stream:
        trainer.evaluate(islice(stream, WARM_UP))
        begin = time.perf_counter()
        evaluated_images = trainer.evaluate(islice(stream, EVALUATION_BATCHES))
        per_image = (time.perf_counter() - begin) / evaluated_images

    return {
        "images_per_second": data_images / data_alone,
        "data": 100 * waited / steps,
        "training": 100 * trained / steps,
        "evaluation": per_image * way.evaluated[0],
        "last_evaluation": per_image * way.evaluated[1],
        "images": {"data": data_images, "training": trained_images, "evaluation": evaluated_images},
    }


def _images(batches: Sequence[Batch]) -> int:
    return sum(len(labels) for _, labels in batches)


class _Trainer:
    """The network and its training step, as in a run."""

    def __init__(self, data: DomainDataset, spec: RunSpec, weights: Path | None, device: torch.device) -> None:
        self.device = device
        self._classes, self._precision = len(data.classes), spec.precision
        self._steps = build_steps(spec, data, device, weights)
        self._algorithm = self._steps.algorithm
        self.network = self._algorithm.network
        self._taken = 0

    def step(self, batches: Sequence[Batch]) -> None:
        self._taken += 1
        self._steps.take(batches, self._taken)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def evaluate(self, batches: Iterable[Batch]) -> int:
        """Score batches and return the number of images."""
        self._algorithm.eval()
        score = evaluate(self._algorithm.predict, batches, self._classes, self._precision)
        self._algorithm.train()
        return int(score["count"])


class _Way(ABC):
    """A way of feeding a run.

    Attributes:
        evaluated: numbers of images in one evaluation and in the last one.
    """

    evaluated: list[int]

    @abstractmethod
    def training(self) -> Generator[list[Batch], None, None]:
        """Yield the batches of each step, without end."""

    @abstractmethod
    def evaluation(self) -> Generator[Batch, None, None]:
        """Yield batches of the images to evaluate, without end."""


class _Cache(_Way):
    """Our way: images are decoded once, the training process augments batches, only parts that are read are scored."""

    def __init__(self, dataset: DomainDataset, spec: RunSpec, trainer: _Trainer) -> None:
        self._inputs = Inputs(dataset, spec, trainer.network.normalisation, trainer.device)
        splits = _splits(dataset, spec)
        read = sum(len(split.out) for split in splits)
        # after the last step the rest of the target is scored twice: at that step and at the selected one
        self.evaluated = [read, read + 2 * sum(len(splits[i].in_) for i in self._inputs.targets)]

    def training(self) -> Generator[list[Batch], None, None]:
        for step in count(1):
            yield self._inputs.batches(step)

    def evaluation(self) -> Generator[Batch, None, None]:
        while True:
            for i in [*self._inputs.sources, *self._inputs.targets]:
                yield from self._inputs.evaluation_batches(i, "out")


class _MadeUp(_Way):
    """One ready batch again and again, for training and for evaluation."""

    def __init__(self, cache: _Cache) -> None:
        self.evaluated = cache.evaluated
        self._batches = [(torch.rand_like(images), labels) for images, labels in next(cache.training())]
        self._evaluated = next(cache.evaluation())

    def training(self) -> Generator[list[Batch], None, None]:
        while True:
            yield self._batches

    def evaluation(self) -> Generator[Batch, None, None]:
        while True:
            yield self._evaluated


class _Loaders(_Way):
    """The usual way: loaders whose workers decode and augment image by image, and evaluation of everything.

    Attributes:
        training_workers: processes of each training loader; together `workers`, if that is possible.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        spec: RunSpec,
        network: Network,
        root: Path,
        workers: int,
        device: torch.device,
    ) -> None:
        size = dataset.input_shape[-1]
        assert network.normalisation is not None  # noqa: S101  (its inputs are pictures)
        self._device = device
        tensor = [
            transforms.ToTensor(),
            transforms.Normalize(network.normalisation.mean, network.normalisation.std),
        ]
        augmented = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
                transforms.RandomGrayscale(),
                *tensor,
            ]
        )
        plain = transforms.Compose([transforms.Resize((size, size)), *tensor])
        files = labelled_images(root, dataset.classes)
        sources = [i for i, name in enumerate(dataset.domain_names) if name not in spec.targets]
        splits = _splits(dataset, spec)
        self.training_workers = max(1, workers // len(sources))
        batch_size = spec.axis("data")["batch_size"]
        self._training = [
            _loader(Subset(_Files(files[i], augmented), splits[i].in_.tolist()), batch_size, self.training_workers)
            for i in sources
        ]
        # Evaluation uses one loader at a time, so one loader of all splits with all workers represents them.
        everything: ConcatDataset[tuple[Tensor, int]] = ConcatDataset([_Files(domain, plain) for domain in files])
        self._evaluation = _loader(everything, EVALUATION_BATCH, workers)
        self.evaluated = [len(everything)] * 2

    def training(self) -> Generator[list[Batch], None, None]:
        for batches in zip(*self._training, strict=True):
            yield [self._moved(batch) for batch in batches]

    def evaluation(self) -> Generator[Batch, None, None]:
        return (self._moved(batch) for batch in self._evaluation)

    def _moved(self, batch: Batch) -> Batch:
        images, labels = batch
        return images.to(self._device, memory_format=torch.channels_last), labels.to(self._device)


class _Files(Dataset[tuple[Tensor, int]]):
    """The image files of a domain, decoded at every access."""

    def __init__(self, files: DomainFiles, transform: Callable[[Image.Image], Tensor]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._files.paths[index]) as image:
            return self._transform(upright(image).convert("RGB")), int(self._files.labels[index])


def _loader(images: Dataset[tuple[Tensor, int]], batch_size: int, workers: int) -> DataLoader[Any]:
    endless = RandomSampler(images, replacement=True, num_samples=_ENDLESS)  # type: ignore[arg-type]
    return DataLoader(images, batch_size, sampler=endless, num_workers=workers)


def _splits(dataset: DomainDataset, spec: RunSpec) -> list[Split]:
    return [split_domain(domain, spec.split, spec.trial_seed, i) for i, domain in enumerate(dataset.domains)]
