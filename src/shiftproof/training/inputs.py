"""The inputs of a run: splits, batches for training steps and batches for evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.algorithms import ALGORITHMS, Batch
from shiftproof.base.plugins import digests
from shiftproof.base.randomness import generator, torch_seed
from shiftproof.data import AUGMENTATIONS, DomainDataset, batch_indices, on_device, split_domain
from shiftproof.models import MODELS, Cut, Normalisation, model_hparams
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.examples import Examples
from shiftproof.training.prepared import prepared, training_rows
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec
from shiftproof.training.trunk_outputs import TrunkOutputs

Part = Literal["in", "out"]
EVALUATION_BATCH = 64
"""Number of examples in a batch of an evaluation."""
GPU_EVALUATION_BATCH = 512
"""Large enough for a GPU, or for what follows a trunk. Predictions that depend on the rest of the batch use
`EVALUATION_BATCH` there too."""


class Inputs:
    """The source and target domains of a run as normalised tensors on its device.

    Args:
        dataset: the data set.
        spec: the run's spec, which names the targets and determines splits and batches.
        normalisation: normalisation of pictures; None for other inputs.
        device: the device of the batches.
        ranks: the processes that train the run; each fills only its own rows of a step's batches, the rest are NaN.
        cut: the network that trains, cut behind its trunk, whose outputs then take the place of pictures; None for
            pictures.

    Raises:
        CacheError: there is no place for the trunk's outputs.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        spec: RunSpec,
        normalisation: Normalisation | None,
        device: torch.device,
        ranks: Ranks = ALONE,
        cut: Cut | None = None,
    ) -> None:
        self._dataset = dataset = prepared(spec, dataset)
        self._seed = spec.seed
        self._balanced = spec.sampling == "balanced"
        self._photographs = dataset.kind == "photographs"
        self._augmentation = AUGMENTATIONS[spec.augmentation]
        self._examples = Examples(dataset, self._augmentation, normalisation, device)
        self._augments_validation = self._photographs and PROTOCOLS[spec.protocol].augment_validation
        self._batch_size: int = spec.axis("data")["batch_size"]
        self._device = device
        large = (device.type == "cuda" or cut is not None) and not ALGORITHMS[spec.algorithm].transductive
        self._evaluation_batch = GPU_EVALUATION_BATCH if large else EVALUATION_BATCH
        self._ranks = ranks
        self._views = spec.views if self._photographs else 0
        # behind a trunk there are no pictures to change anew
        self._changes = self._photographs and (self._views > 0 or cut is None)
        self._trunk = None if cut is None else self._trunk_outputs(cut, spec)
        self.targets = [dataset.domain_index(name) for name in spec.targets]
        self.sources = [i for i in range(len(dataset.domains)) if i not in self.targets]
        self._splits = [
            split_domain(domain, spec.split, spec.trial_seed, i) for i, domain in enumerate(dataset.domains)
        ]
        self._training_rows = [training_rows(spec, dataset.domains[i], i) for i in self.sources]

    def make_trunk_outputs(self) -> None:
        """Make what is kept of the trunk and not there yet; without a trunk it does nothing.

        Raises:
            CacheError: it cannot be kept.
        """
        if self._trunk is not None:
            plain = [(domain, 0) for domain in range(len(self._dataset.domains))]
            changed = [(domain, view) for domain in self.sources for view in range(1, self._views + 1)]
            self._trunk.make(plain + changed)

    def rows(self, domain: int, part: Part) -> NDArray[np.int64]:
        """Return which rows of a domain one of its parts holds, in the order of its evaluation batches."""
        split = self._splits[domain]
        return split.out if part == "out" else split.in_

    def training_batches(self, domain: int) -> Iterator[Batch]:
        """Yield all rows of a source that batches draw from, in order and not augmented."""
        rows = self._training_rows[self.sources.index(domain)]
        for start in range(0, len(rows), self._evaluation_batch):
            batch = rows[start : start + self._evaluation_batch]
            yield self._plain(domain, batch), self._labels(domain, batch)

    def batches(self, step: int) -> list[Batch]:
        """Return the batch of every source domain at step number ``step`` (from 1)."""
        return self._drawn(self.sources, self._training_rows, self._batch_size, self._seed, step)

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
        images = self._augmented(domain, indices, own, seed, step)
        if self._ranks.size == 1:
            return images
        whole = images.new_full((len(indices), *images.shape[1:]), math.nan)  # so that using them by mistake shows
        if whole.ndim == 4:
            whole = whole.contiguous(memory_format=torch.channels_last)
        whole[own] = images
        return whole

    def _augmented(self, domain: int, indices: NDArray[np.int64], own: slice, seed: int, step: int) -> Tensor:
        """Return the rows ``own`` of a batch as the network takes them; photographs are augmented."""
        if not self._changes:
            return self._plain(domain, indices[own])
        if self._views:
            return self._viewed(domain, indices[own], self._drawn_views(len(indices), seed, step, domain)[own])
        draws = self._augmentation.draw(len(indices), self._dataset.input_shape[-1], seed, step, domain)
        return self._examples.augmented(domain, indices[own], draws[own])

    def _viewed(self, domain: int, indices: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """Return pictures, each in one of its views, or what the trunk puts out for them."""
        if self._trunk is not None:
            return self._trunk.rows(domain, indices, views)
        shape = (len(indices), *self._dataset.input_shape)
        pictures = torch.empty(shape, device=self._device, memory_format=torch.channels_last)
        for view in np.unique(views).tolist():
            there = np.flatnonzero(views == view)
            pictures[there] = self._examples.in_view(domain, indices[there], view)
        return pictures

    def _plain(self, domain: int, indices: NDArray[np.int64]) -> Tensor:
        """Return rows as they are, or what the trunk puts out for them."""
        if self._trunk is not None:
            return self._trunk.rows(domain, indices, None)
        return self._examples.in_view(domain, indices, 0)

    def _drawn_views(self, count: int, seed: int, step: int, domain: int) -> NDArray[np.int64]:
        """Draw the view of each picture of a batch, from 1."""
        return generator(seed, "view", step, domain).integers(1, self._views + 1, count)

    def _trunk_outputs(self, cut: Cut, spec: RunSpec) -> TrunkOutputs:
        facts = [
            (name, getattr(spec, name))
            for name in ("data_fingerprint", "model", "weights", "normalisation", "image_size", "kind", "device")
        ]
        hparams = sorted(model_hparams(spec.model).keys() & spec.axis("model").keys())
        facts += [(name, spec.axis("model")[name]) for name in hparams]
        parts = digests([(MODELS, spec.model), (AUGMENTATIONS, spec.augmentation)])
        facts += [("plugins", sorted(parts.items())), ("augmentation", spec.augmentation)]
        facts += [(name, version(name)) for name in ("torch", "torchvision", "timm")]
        dtype = torch.float16 if spec.cache == "float16" else torch.float32
        # a method of this object would close a circle, and mapped files would stay until a garbage collection
        return TrunkOutputs(
            cut, facts, [len(domain) for domain in self._dataset.domains], dtype, self._examples.in_view
        )

    def evaluation_batches(self, domain: int, part: Part, step: int = 0) -> Iterator[Batch]:
        """Yield all images of one part of a domain, in order, at the evaluation after step number ``step``.

        They are not augmented, except for the sources' held-out photographs in some dialects.
        """
        indices = self.rows(domain, part)
        views = draws = None
        if self._changes and self._augments_validation and part == "out" and domain in self.sources:
            # negative, because training draws with positive steps
            if self._views:
                views = self._drawn_views(len(indices), self._seed, -step, domain)
            else:
                size = self._dataset.input_shape[-1]
                draws = self._augmentation.draw(len(indices), size, self._seed, -step, domain)
        for start in range(0, len(indices), self._evaluation_batch):
            batch = slice(start, start + self._evaluation_batch)
            rows = indices[batch]
            if views is not None:
                inputs = self._viewed(domain, rows, views[batch])
            elif draws is not None:
                inputs = self._examples.augmented(domain, rows, draws[batch])
            else:
                inputs = self._plain(domain, rows)
            yield inputs, self._labels(domain, rows)

    def sample(self, domain: int, part: Part, count: int) -> Batch:
        """Return up to ``count`` images of one part of a domain without augmentation, always the same ones."""
        chosen = self.rows(domain, part)[:count]  # the splits are in random order
        return self._plain(domain, chosen), self._labels(domain, chosen)

    def _labels(self, domain: int, indices: NDArray[np.int64]) -> Tensor:
        return on_device(self._dataset.domains[domain].targets[indices], self._device)
