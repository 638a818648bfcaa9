"""Made-up batches and small runs, which the tests of several algorithms step and continue."""

import copy

import torch

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import Annealer
from shiftproof.models import build_network
from shiftproof.optim import OPTIMIZERS
from shiftproof.training import StepBuilder
from shiftproof.training.optimizer_factory import RunOptimizers

FROM_SCRATCH = [name for name in ALGORITHMS if not (ALGORITHMS[name].probed or ALGORITHMS[name].needs_class_vectors)]
"""Algorithms that train from a random start, without given weights or vectors of the classes."""


def made_up(counts=(4, 4), classes=3, dtype=torch.float32, seed=0):
    """One batch per source domain, of as many images as told; the labels can be learned."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for count in counts:
        labels = torch.randint(classes, (count,), generator=generator)
        images = torch.randn(count, 1, 16, 16, generator=generator, dtype=dtype) + labels.view(-1, 1, 1, 1)
        batches.append((images, labels))
    return batches


def small(kind, domains=2, dropout=0.0, dtype=torch.float32, classes=3, **hparams):
    vectors = None
    if getattr(kind, "needs_class_vectors", False):
        vectors = torch.randn(classes, 64, generator=torch.Generator().manual_seed(7))
    network = build_network("small_conv", (1, 16, 16), classes, dropout=dropout, seed=0, class_vectors=vectors)
    return kind(network, domains, **hparams).to(dtype)


def steps_of(algorithm, optimizer="sgd", lr=0.01, **options):
    """What takes the steps of an algorithm with a registered optimizer."""
    entry = OPTIMIZERS[optimizer]
    defaults = {name: hparam.default for name, hparam in entry.hparams.items()}
    algorithm.build_optimizers(RunOptimizers(optimizer, 1, {**defaults, "lr": lr, "weight_decay": 0.0}))
    return StepBuilder(algorithm.train(), Annealer(), seed=0, create_graph=entry.needs_graph, **options)


def assert_continues_bit_equal(build, optimizer, stop, end, counts=(4, 4)):
    """Train to ``end`` in one go, and with a new start from the state at ``stop``."""
    whole = steps_of(build(), optimizer)
    for step in range(1, stop + 1):
        whole.take(made_up(counts, seed=step), step)
    trained = whole.algorithm
    state = copy.deepcopy((trained.state_dict(), {n: o.state_dict() for n, o in trained.optimizers.items()}))
    again = steps_of(build(), optimizer)
    again.algorithm.load_state_dict(state[0])
    for name, built in again.algorithm.optimizers.items():
        built.load_state_dict(state[1][name])
    for step in range(stop + 1, end + 1):
        batches = made_up(counts, seed=step)
        assert torch.equal(whole.take(batches, step), again.take(batches, step)), step
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.algorithm.state_dict()[name]), name


def gradients(algorithm, batches):
    """The gradients that the algorithm leaves, by name."""
    algorithm.zero_grad()
    algorithm.backward(batches)
    return {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}


def loss_of_image(algorithm, image, label):
    """The cross-entropy of one image, of its logits."""
    logits = algorithm.predict(image[None])[0]
    return logits.exp().sum().log() - logits[label]


def domain_losses(algorithm, batches):
    """The mean cross-entropy of every domain, image by image."""
    losses = []
    for images, labels in batches:
        pairs = zip(images, labels, strict=True)
        losses.append(torch.stack([loss_of_image(algorithm, image, label) for image, label in pairs]).mean())
    return losses
