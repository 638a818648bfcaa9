"""The examples of a data set as a network takes them: normalised tensors, as they are, augmented or in a view."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.base.randomness import torch_seed
from shiftproof.data import Augmentation, DomainDataset, on_device
from shiftproof.models import Normalisation


class Examples:
    """The examples of all domains, of which it returns normalised tensors (rows, ...) on a device.

    Args:
        dataset: the data set.
        augmentation: changes pictures.
        normalisation: normalisation of pictures; None for other inputs.
        device: the device of the tensors.
    """

    def __init__(
        self,
        dataset: DomainDataset,
        augmentation: Augmentation,
        normalisation: Normalisation | None,
        device: torch.device,
    ) -> None:
        self._dataset, self._augmentation = dataset, augmentation
        self._normalisation, self._device = normalisation, device
        self._draws: dict[tuple[int, int], Any] = {}

    def augmented(self, domain: int, rows: NDArray[np.int64], draws: Any) -> Tensor:
        """Return pictures of a domain, changed by one draw each."""
        return self._normalised(self._augmentation.apply(self._rows(domain, rows), draws))

    def in_view(self, domain: int, rows: NDArray[np.int64], view: int) -> Tensor:
        """Return examples of a domain in one view, of which 0 is as they are."""
        if view:
            return self.augmented(domain, rows, self._draws_of(domain, view)[rows])
        plain = self._rows(domain, rows)
        return self._normalised(plain.float() / 255 if plain.dtype == torch.uint8 else plain)

    def _draws_of(self, domain: int, view: int) -> Any:
        """Return what makes a view of each picture of a domain; it is the same for all runs."""
        if (domain, view) not in self._draws:
            size, count = self._dataset.input_shape[-1], len(self._dataset.domains[domain])
            self._draws[domain, view] = self._augmentation.draw(count, size, torch_seed("views"), view, domain)
        return self._draws[domain, view]

    def _rows(self, domain: int, rows: NDArray[np.int64]) -> Tensor:
        # fancy indexing copies the chosen images, even out of a memory-mapped array
        return on_device(self._dataset.domains[domain].inputs[rows], self._device)

    def _normalised(self, inputs: Tensor) -> Tensor:
        if self._normalisation is None:
            return inputs
        # convolutions are up to 2.5 times as fast in channels-last format
        return self._normalisation(inputs).contiguous(memory_format=torch.channels_last)
