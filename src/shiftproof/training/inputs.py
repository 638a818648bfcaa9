"""The inputs of a run: splits, batches for training steps and batches for evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.algorithms import ALGORITHMS, Batch
from shiftproof.base.randomness import torch_seed
from shiftproof.data import AUGMENTATIONS, DomainDataset, batch_indices, on_device, split_domain
from shiftproof.models import Normalisation
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.prepared import prepared
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec

Part = Literal["in", "out"]
EVALUATION_BATCH = 64
GPU_EVALUATION_BATCH = 512
"""Large enough for a GPU; predictions that depend on the rest of the batch use `EVALUATION_BATCH` there too."""


class Inputs:
    """The source and target domains of a run as normalised tensors on its device.

    Args:
        dataset: the data set.
        spec: the run's spec, which names the targets and determines splits and batches.
        normalisation: normalisation of pictures; None for other inputs.
        device: the device of the batches.
        ranks: the processes that train the run; each fills only its own rows of a step's batches, the rest are NaN.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        spec: RunSpec,
        normalisation: Normalisation | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self._dataset = dataset = prepared(spec, dataset)
        self._seed = spec.seed
        self._balanced = spec.sampling == "balanced"
        self._photographs = dataset.kind == "photographs"
        self._augmentation = AUGMENTATIONS[spec.augmentation]
        self._augments_validation = self._photographs and PROTOCOLS[spec.protocol].augment_validation
        self._batch_size: int = spec.axis("data")["batch_size"]
        self._normalisation = normalisation
        self._device = device
        large = device.type == "cuda" and not ALGORITHMS[spec.algorithm].transductive
        self._evaluation_batch = GPU_EVALUATION_BATCH if large else EVALUATION_BATCH
        self._ranks = ranks
        self.targets = [dataset.domain_index(name) for name in spec.targets]
        self.sources = [i for i in range(len(dataset.domains)) if i not in self.targets]
        self._splits = [
            split_domain(domain, spec.split, spec.trial_seed, i) for i, domain in enumerate(dataset.domains)
        ]

    def rows(self, domain: int, part: Part) -> NDArray[np.int64]:
        """Return which rows of a domain one of its parts holds, in the order of its evaluation batches."""
        split = self._splits[domain]
        return split.out if part == "out" else split.in_

    def batches(self, step: int) -> list[Batch]:
        """Return the batch of every source domain at step number ``step`` (from 1)."""
        candidates = [self._splits[domain].in_ for domain in self.sources]
        return self._drawn(self.sources, candidates, self._batch_size, self._seed, step)

    def fresh_batches(self, step: int) -> list[Batch]:
        """Return a batch of every source domain's held-out images, drawn and augmented as in training."""
        candidates = [self._splits[domain].out for domain in self.sources]
        return self._drawn(self.sources, candidates, self._batch_size, torch_seed(self._seed, "fresh"), step)

    def unseen_batch(self, step: int) -> Batch:
        """Return as many images of the targets as a step trains on, drawn and augmented as in training."""
        candidates = [np.arange(len(self._dataset.domains[domain])) for domain in self.targets]
        size = -(-self._batch_size * len(self.sources) // len(self.targets))
        batches = self._drawn(self.targets, candidates, size, torch_seed(self._seed, "unseen"), step)
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)

    def _drawn(
        self, domains: Sequence[int], candidates: Sequence[NDArray[np.int64]], batch_size: int, seed: int, step: int
    ) -> list[Batch]:
        classes = None
        if self._balanced:
            parts = zip(domains, candidates, strict=True)
            classes = [self._dataset.domains[domain].targets[rows] for domain, rows in parts]
        indices = batch_indices(candidates, batch_size, seed, step, classes)
        return [
            (self._own_rows(domain, chosen, seed, step), self._labels(domain, chosen))
            for domain, chosen in zip(domains, indices, strict=True)
        ]

    def _own_rows(self, domain: int, indices: NDArray[np.int64], seed: int, step: int) -> Tensor:
        """Return the normalised images of a batch; rows whose features other ranks compute are NaN."""
        own = slice(self._ranks.rank, None, self._ranks.size)
        images = self._prepared(self._augmented(domain, indices, own, seed, step))
        if self._ranks.size == 1:
            return images
        whole = images.new_full((len(indices), *images.shape[1:]), math.nan)  # so that using them by mistake shows
        if whole.ndim == 4:
            whole = whole.contiguous(memory_format=torch.channels_last)
        whole[own] = images
        return whole

    def _augmented(self, domain: int, indices: NDArray[np.int64], own: slice, seed: int, step: int) -> Tensor:
        """Return the rows ``own`` of a batch as floats, of pictures in [0, 1]; photographs are augmented."""
        images = self._rows(domain, indices[own])
        if not self._photographs:
            return self._as_floats(images)
        draws = self._augmentation.draw(len(indices), images.shape[-1], seed, step, domain)
        return self._augmentation.apply(images, draws[own])

    def evaluation_batches(self, domain: int, part: Part, step: int = 0) -> Iterator[Batch]:
        """Yield all images of one part of a domain, in order, at the evaluation after step number ``step``.

        They are not augmented, except for the sources' held-out photographs in some dialects.
        """
        indices = self.rows(domain, part)
        draws = None
        if self._augments_validation and part == "out" and domain in self.sources:
            size = self._dataset.input_shape[-1]
            # negative, because training draws with positive steps
            draws = self._augmentation.draw(len(indices), size, self._seed, -step, domain)
        for start in range(0, len(indices), self._evaluation_batch):
            batch = slice(start, start + self._evaluation_batch)
            rows = self._rows(domain, indices[batch])
            images = self._as_floats(rows) if draws is None else self._augmentation.apply(rows, draws[batch])
            yield self._prepared(images), self._labels(domain, indices[batch])

    def sample(self, domain: int, part: Part, count: int) -> Batch:
        """Return up to ``count`` images of one part of a domain without augmentation, always the same ones."""
        chosen = self.rows(domain, part)[:count]  # the splits are in random order
        return self._prepared(self._as_floats(self._rows(domain, chosen))), self._labels(domain, chosen)

    def _as_floats(self, rows: Tensor) -> Tensor:
        return rows.float() / 255 if rows.dtype == torch.uint8 else rows

    def _prepared(self, inputs: Tensor) -> Tensor:
        if self._normalisation is None:
            return inputs
        # convolutions are up to 2.5 times as fast in channels-last format
        return self._normalisation(inputs).contiguous(memory_format=torch.channels_last)

    def _rows(self, domain: int, indices: NDArray[np.int64]) -> Tensor:
        # fancy indexing copies the chosen images, even out of a memory-mapped array
        return on_device(self._dataset.domains[domain].inputs[indices], self._device)

    def _labels(self, domain: int, indices: NDArray[np.int64]) -> Tensor:
        return on_device(self._dataset.domains[domain].targets[indices], self._device)
