"""What a run trains and is evaluated on, against the operations it is made of."""

import dataclasses

import numpy as np
import pytest
import torch

from shiftproof.data import Domain, DomainDataset, augment, batch_indices, draw_augmentations, split_domain
from shiftproof.models import Normalisation
from shiftproof.training import RunSpec
from shiftproof.training.inputs import EVALUATION_BATCH, Inputs

NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def _dataset(photographs):
    random = np.random.default_rng(0)
    domains = tuple(
        Domain(name, random.integers(0, 256, (count, 3, 12, 12), dtype=np.uint8), random.integers(0, 4, count))
        for name, count in (("a", 40), ("b", 30), ("c", 600))
    )
    return DomainDataset("noise", domains, tuple("wxyz"), "photographs" if photographs else "small_images", "x")


SPEC = RunSpec(
    dataset="noise",
    data_fingerprint="x",
    algorithm="erm",
    optimizer="sgd",
    annealer="none",
    targets=("b",),
    trial_seed=1,
    hparam_seed=0,
    hparams={"data.batch_size": 5},
    steps=1,
    checkpoint_freq=1,
    model="small_conv",
)


def _inputs(dataset, protocol="shiftproof"):
    return Inputs(dataset, dataclasses.replace(SPEC, protocol=protocol), NORMALISATION, torch.device("cpu"))


def _part(dataset, protocol, domain, part, step):
    batches = _inputs(dataset, protocol).evaluation_batches(domain, part, step)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels.tolist()


def _normalised(pixels):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (NORMALISATION.mean, NORMALISATION.std))
    return (pixels - mean) / std


@pytest.mark.parametrize("photographs", [True, False])
def test_batches_are_the_drawn_images_augmented_if_photographs(photographs):
    dataset = _dataset(photographs)
    splits = [split_domain(domain, "random", 1, i) for i, domain in enumerate(dataset.domains)]
    drawn = batch_indices([splits[0].in_, splits[2].in_], 5, SPEC.seed, 3)
    batches = _inputs(dataset).batches(3)
    assert len(batches) == 2
    for (images, labels), domain, chosen in zip(batches, (0, 2), drawn, strict=True):
        pixels = torch.from_numpy(dataset.domains[domain].inputs[chosen])
        plain = pixels.float() / 255
        expected = augment(pixels, draw_augmentations(5, 12, SPEC.seed, 3, domain)) if photographs else plain
        torch.testing.assert_close(images, _normalised(expected))
        assert torch.equal(images, _normalised(plain)) != photographs
        assert labels.tolist() == dataset.domains[domain].targets[chosen].tolist()


@pytest.mark.parametrize("part", ["in", "out"])
@pytest.mark.parametrize("domain", [1, 2])
def test_evaluation_is_plain_whole_and_in_order(domain, part):
    dataset = _dataset(photographs=True)
    split = split_domain(dataset.domains[domain], "random", 1, domain)
    indices = split.out if part == "out" else split.in_
    batches = list(_inputs(dataset).evaluation_batches(domain, part))
    assert all(len(labels) <= EVALUATION_BATCH for _, labels in batches)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    torch.testing.assert_close(images, _normalised(torch.from_numpy(dataset.domains[domain].inputs[indices]) / 255))
    assert labels.tolist() == dataset.domains[domain].targets[indices].tolist()


@pytest.mark.parametrize("protocol", ["domainbed", "domainbed-head"])
def test_some_dialects_augment_the_held_out_photographs_of_the_sources(protocol):
    dataset = _dataset(photographs=True)
    split = split_domain(dataset.domains[2], "random", 1, 2)
    images, labels = _part(dataset, protocol, 2, "out", 3)
    pixels = torch.from_numpy(dataset.domains[2].inputs[split.out])
    assert len(pixels) > EVALUATION_BATCH
    draws = draw_augmentations(len(pixels), 12, SPEC.seed, -3, 2)
    torch.testing.assert_close(images, _normalised(augment(pixels, draws)))
    assert labels == dataset.domains[2].targets[split.out].tolist()
    assert torch.equal(_part(dataset, protocol, 2, "out", 3)[0], images)
    assert not torch.equal(_part(dataset, protocol, 2, "out", 4)[0], images)


def test_all_else_is_evaluated_plain():
    for protocol, photographs, domain, part in (
        ("domainbed", False, 2, "out"),
        ("domainbed", True, 1, "out"),  # of the target
        ("domainbed", True, 1, "in"),
        ("domainbed", True, 2, "in"),
        ("swad", True, 2, "out"),
    ):
        dataset = _dataset(photographs)
        split = split_domain(dataset.domains[domain], "random", 1, domain)
        indices = split.out if part == "out" else split.in_
        plain = _normalised(torch.from_numpy(dataset.domains[domain].inputs[indices]) / 255)
        torch.testing.assert_close(_part(dataset, protocol, domain, part, 3)[0], plain)


def test_validation_is_not_augmented_as_a_step_was():
    draws = [draw_augmentations(5, 12, SPEC.seed, step, 2).factors for step in (3, -3)]
    assert not np.isin(draws[0], draws[1]).any()
