"""The work that a process does only once, done before the clock of a run starts."""

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
    """Do everything that a run repeats once, on a copy of the run that is thrown away.

    The seconds recorded for the run then leave out what a process does only once: compiling or loading the kernels of
    GENIE, Triton and ``torch.compile``, importing modules, starting the libraries of a GPU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will warn
        steps = build_steps(spec, dataset, device, weights, ranks)
        inputs = Inputs(dataset, spec, steps.algorithm.network.normalisation, device, ranks, steps.cut)
        inputs.make_trunk_outputs()
        steps.algorithm.train()
        batches = inputs.batches(1)
        float(steps.take(batches, 1))
        if spec.annealer != "none" and len(batches) > 1:  # the annealer may compare domains, but after the first step
            losses = [partial(steps.algorithm.domain_loss, batches, domain) for domain in range(len(batches))]
            domain_similarities([p for p in steps.algorithm.parameters() if p.requires_grad], losses)
        some = islice(inputs.evaluation_batches(inputs.sources[0], "out"), 1)
        # two sizes, because torch.compile specialises for the first size and then recompiles for any size
        sizes = ((images[:n], labels[:n]) for images, labels in some for n in (len(images), -1) if len(images[:n]))
        steps.algorithm.eval()
        network = steps.algorithm.network
        evaluate(steps.algorithm.predict, sizes, len(dataset.classes), spec.precision, network.task, network.loss)
        torch.save(full_state(steps.algorithm), io.BytesIO())
