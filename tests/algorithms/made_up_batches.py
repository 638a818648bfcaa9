"""What the tests of algorithms share: small networks in float64, uneven batches, steps as a run takes them."""

import copy
import inspect

import torch

from shiftproof.annealing import Annealer
from shiftproof.models import build_network
from shiftproof.optim import OPTIMIZERS
from shiftproof.training import StepBuilder
from shiftproof.training.optimizer_factory import RunOptimizers

CLASSES = 4


def double_network(dropout=0.0):
    return build_network("small_conv", (1, 16, 16), CLASSES, dropout=dropout, seed=0).double()


def uneven_batches(sizes=(3, 5), seed=0):
    """Give float64 images whose last class is in no batch."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, 1, 16, 16, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES - 1, (n,), generator=generator),
        )
        for n in sizes
    ]


def built_steps(algorithm, optimizer="adam", accumulate=1, **hparams):
    algorithm.build_optimizers(RunOptimizers(optimizer, 1, {"lr": 1e-2, "weight_decay": 0.0, **hparams}))
    needs_graph = OPTIMIZERS[optimizer].needs_graph
    return StepBuilder(algorithm.train(), Annealer(), seed=0, create_graph=needs_graph, accumulate=accumulate)


def assert_resumes(build, optimizer="adam", sizes=(4, 6), before=3, after=3, **options):
    """Assert that a run saved and loaded in the middle goes on as one that was not, bit by bit."""
    whole = built_steps(build(), optimizer, **options)
    for step in range(1, before + 1):
        whole.take(uneven_batches(sizes, step), step)
    state = copy.deepcopy(whole.algorithm.state_dict())
    optimizers = copy.deepcopy({name: o.state_dict() for name, o in whole.algorithm.optimizers.items()})
    again = built_steps(build(), optimizer, **options)
    again.algorithm.load_state_dict(state)
    for name, built in again.algorithm.optimizers.items():
        built.load_state_dict(optimizers[name])
    for step in range(before + 1, before + after + 1):
        batches = uneven_batches(sizes, step)
        assert torch.equal(whole.take(batches, step), again.take(batches, step))
    for name, value in whole.algorithm.state_dict().items():
        assert torch.equal(value, again.algorithm.state_dict()[name]), name
    return whole


def defaults(kind):
    """Return the defaults of the registered hyperparameters and those of the constructor."""
    signatures = [inspect.signature(one.__init__).parameters for one in kind.__mro__ if "__init__" in vars(one)]
    parameters = {name: p for signature in reversed(signatures) for name, p in signature.items()}
    registered = {name: hparam.default for name, hparam in kind.hparams.items()}
    return registered, {name: parameters[name].default for name in registered}
