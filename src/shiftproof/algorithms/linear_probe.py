"""A linear probe of the given weights' features, alone or as the start of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shiftproof.algorithms.algorithm import ALGORITHMS, MakeClosure, OptimizerFactory
from shiftproof.algorithms.erm import ERM
from shiftproof.base.batch import Batch

_FITTED_ONCE = "its classifier is fitted to all features at once"


class LPFT(ERM):
    """Fine-tunes from a linear probe: the classifier is fitted to the given weights' features, then ERM trains on.

    A random classifier's first gradients distort the features; those of a fitted one do so less.

    Source: Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022
    (arXiv 2202.10054).
    """

    probed = True
    takes_class_vectors = False
    single_device = _FITTED_ONCE


class LinearProbe(ERM):
    """Fits the classifier to the given weights' features by L-BFGS, the penalty chosen by validation; no steps.

    It takes no optimizer. What is fitted is in docs/how_to/linear_probe.md.
    """

    probed = True
    takes_class_vectors = False
    stepped = False
    single_device = _FITTED_ONCE

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build none."""

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Return the loss, and leave the weights as they are."""
        with torch.no_grad():
            return self.objective(batches)


ALGORITHMS.register("probe", LinearProbe)
ALGORITHMS.register("lp_ft", LPFT)
