"""What a process does once, done before the clock of a run starts."""

from __future__ import annotations

import io
import warnings
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from shiftproof.data import DomainDataset
from shiftproof.gradients import domain_similarities
from shiftproof.training.build import build_steps
from shiftproof.training.evaluation import evaluate
from shiftproof.training.inputs import Inputs
from shiftproof.training.ranks import Ranks, full_state
from shiftproof.training.spec import RunSpec


def warm_up(spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks) -> None:
    """Do once what a run does again and again, with a twin of it, which is thrown away.

    What a process does at the first time alone is then not in the run's seconds: GENIE's kernel, Triton's and those of
    ``torch.compile`` are compiled or loaded, modules imported, libraries of a GPU started.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say it
        steps = build_steps(spec, dataset, device, weights, ranks)
        inputs = Inputs(dataset, spec, steps.algorithm.network.normalisation, device, ranks)
        steps.algorithm.train()
        batches = inputs.batches(1)
        float(steps.take(batches, 1))
        if spec.annealer != "none" and len(batches) > 1:  # it may compare domains, and later than in the first step
            losses = [partial(steps.algorithm.domain_loss, batches, domain) for domain in range(len(batches))]
            domain_similarities([p for p in steps.algorithm.parameters() if p.requires_grad], losses)
        some = islice(inputs.evaluation_batches(inputs.sources[0], "out"), 1)
        # of two sizes: what is compiled for one first is then compiled for any
        sizes = ((images[:n], labels[:n]) for images, labels in some for n in (len(images), -1) if len(images[:n]))
        steps.algorithm.eval()
        evaluate(steps.algorithm.predict, sizes, len(dataset.classes), spec.precision)
        torch.save(full_state(steps.algorithm), io.BytesIO())
