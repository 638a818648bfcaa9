import math

import numpy as np
import pytest
import torch
from torch.distributions import Beta

from algorithms.made_up_batches import defaults
from algorithms.made_up_runs import assert_continues_bit_equal, gradients, made_up, small
from draws import draw
from shiftproof.algorithms import ERM, LISA
from shiftproof.base.randomness import seed_hash


def _cross_entropy(logits, label):
    return logits.exp().sum().log() - logits[label]


def _transcription(algorithm, batches, alpha, p_sel):
    """Row by row; the draws are of the strategy, the shares and an order of candidates for every row."""
    rows = [(x, int(y), d) for d, (images, labels) in enumerate(batches) for x, y in zip(images, labels, strict=True)]
    within_classes = float(torch.rand(())) < p_sel
    concentration = torch.tensor(alpha, dtype=torch.float64)
    shares = Beta(concentration, concentration).sample((len(rows),))
    order = torch.rand(len(rows), len(rows))
    losses, pairs = [], []
    for i, (x, y, domain) in enumerate(rows):
        if within_classes:
            candidates = [j for j, (_, other, of) in enumerate(rows) if other == y and of != domain]
        else:
            candidates = [j for j, (_, other, of) in enumerate(rows) if other != y and of == domain]
        if candidates:
            j = max(candidates, key=lambda j: float(order[i, j]))
            other_x, other_y, _ = rows[j]
            share = float(shares[i])
            logits = algorithm.predict((share * x + (1 - share) * other_x)[None])[0]
            losses.append(share * _cross_entropy(logits, y) + (1 - share) * _cross_entropy(logits, other_y))
            pairs.append((i, j))
        else:
            losses.append(_cross_entropy(algorithm.predict(x[None])[0], y))
    return sum(losses) / len(losses), within_classes, pairs


@pytest.mark.parametrize("counts", [(5,), (4, 6), (2, 5, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("p_sel", [0.0, 0.5, 1.0])
def test_loss_and_gradients_are_those_of_the_transcription(counts, p_sel):
    algorithm = small(LISA, len(counts), dtype=torch.float64, p_sel=p_sel)
    parameters = dict(algorithm.named_parameters())
    strategies, pairs = set(), []
    for seed in range(4):
        batches = made_up(counts, dtype=torch.float64, seed=seed)
        torch.manual_seed(seed)
        expected, strategy, own = _transcription(algorithm, batches, 2.0, p_sel)
        strategies.add(strategy)
        pairs += own
        descent = torch.autograd.grad(expected, list(parameters.values()))
        torch.manual_seed(seed)
        loss = algorithm.objective(batches)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        torch.manual_seed(seed)
        found = gradients(algorithm, batches)
        for name, gradient in zip(parameters, descent, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)
    assert strategies == ({False} if p_sel == 0 else {True} if p_sel == 1 else {False, True})
    assert bool(pairs) is not (p_sel == 1 and len(counts) == 1)


def test_of_one_domain_within_classes_and_where_no_image_has_a_partner_it_is_erm():
    one = made_up((5,), dtype=torch.float64)
    alike = [(images, torch.ones_like(labels)) for images, labels in made_up((3, 4), dtype=torch.float64)]
    for batches, p_sel in ((one, 1.0), (alike, 0.0)):  # no other domain; no other class
        erm, lisa = (small(kind, len(batches), dtype=torch.float64) for kind in (ERM, LISA))
        lisa.p_sel = p_sel
        torch.testing.assert_close(lisa.objective(batches), erm.objective(batches), rtol=1e-12, atol=0)


def test_every_candidate_is_drawn_alike():
    """An image whose value names it: the mixed value tells the partner."""
    values = torch.arange(6.0, dtype=torch.float64)
    batches = [(values[:3], torch.tensor([0, 1, 1])), (values[3:], torch.tensor([0, 0, 1]))]
    algorithm, seen = small(LISA, 2, dtype=torch.float64, p_sel=1.0), []
    algorithm._shares.sample = lambda shape: torch.zeros(shape, dtype=torch.float64)
    algorithm.predict = lambda inputs: seen.append(inputs) or torch.zeros(6, 3, dtype=torch.float64)
    for seed in range(2000):
        torch.manual_seed(seed)
        algorithm.objective(batches)
    partners = torch.stack(seen)
    assert [set(column.tolist()) for column in partners.T] == [{3, 4}, {5}, {5}, {0}, {0}, {1, 2}]
    assert float((partners[:, 0] == 3).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert float((partners[:, 5] == 1).double().mean()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(LISA, dropout=0.3), optimizer, 3, 6)


@pytest.mark.parametrize("alpha", [0.0, 0.009, math.inf, math.nan])
def test_alphas_out_of_range_are_refused(alpha):
    with pytest.raises(ValueError, match=f"Invalid alpha value: {alpha}; it must be at least 0.01"):
        small(LISA, alpha=alpha)


@pytest.mark.parametrize("p_sel", [-0.1, 1.1, math.nan])
def test_probabilities_out_of_range_are_refused(p_sel):
    with pytest.raises(ValueError, match=rf"Invalid p_sel value: {p_sel}; it must be in \[0, 1\]"):
        small(LISA, p_sel=p_sel)


def test_defaults_and_draws_are_those_of_subpopbench():
    registered, constructed = defaults(LISA)
    assert registered == constructed == draw(LISA.hparams, 0, 0) == {"alpha": 2.0, "p_sel": 0.5}
    alpha, p_sel = (np.random.RandomState(seed_hash(seed_hash(3, 1), name)) for name in ("LISA_alpha", "LISA_p_sel"))
    assert draw(LISA.hparams, 3, 1) == {"alpha": 10 ** alpha.uniform(-1, 1), "p_sel": p_sel.uniform(0, 1)}
