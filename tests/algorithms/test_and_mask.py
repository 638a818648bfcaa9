import pytest
import torch

from algorithms.made_up_runs import assert_continues_bit_equal, domain_losses, gradients, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.and_mask import ANDMask


def _transcription(algorithm, batches, tau, rescale):
    """Element by element over stacked gradients."""
    parameters = list(algorithm.parameters())
    by_domain = [torch.autograd.grad(loss, parameters) for loss in domain_losses(algorithm, batches)]
    masked = []
    for parts in zip(*by_domain, strict=True):
        stacked = torch.stack([part.flatten() for part in parts])
        kept = []
        for element in stacked.T:
            agreement = abs(sum(1 if g > 0 else -1 if g < 0 else 0 for g in element.tolist())) / len(batches)
            kept.append(agreement >= tau - 1e-12)
        kept = torch.tensor(kept, dtype=torch.float64)
        mean = stacked.mean(0) * kept
        if rescale and kept.any():
            mean = mean / (kept.sum() / len(kept))
        masked.append(mean.view_as(parts[0]))
    return masked


class _Tiny(torch.nn.Module):
    """Few weights, so that the transcription may go element by element."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(256, 4)

    def forward(self, images):
        return self.linear(images.flatten(1)).tanh()


def _tiny(kind, domains, **hparams):
    algorithm = small(kind, domains, **hparams)
    torch.manual_seed(0)
    algorithm.network.featurizer = _Tiny()
    algorithm.network.classifier = torch.nn.Linear(4, 3)
    return algorithm.double()


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("tau", [0.6, 1.0])
@pytest.mark.parametrize("rescale", [False, True])
def test_gradients_are_those_of_the_transcription(counts, tau, rescale):
    algorithm = _tiny(ANDMask, len(counts), tau=tau, rescale=rescale)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, tau, rescale)
    found = gradients(algorithm, batches)
    for (name, _), gradient in zip(algorithm.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)
    if len(counts) > 1:
        shares = [float((g == 0).double().mean()) for g in found.values()]
        assert 0.1 < shares[0] < 0.99  # of the featurizer's weights
    loss = algorithm.backward(batches)
    torch.testing.assert_close(loss, torch.stack(domain_losses(algorithm, batches)).mean().detach(), rtol=1e-10, atol=0)


def test_on_identical_domains_on_one_and_without_a_threshold_it_is_erm():
    one = made_up((4,), dtype=torch.float64)
    apart = made_up((4, 4, 4), dtype=torch.float64)
    for batches, tau in ((one, 1.0), (one * 3, 1.0), (apart, 0.0)):
        mask, erm = (small(kind, len(batches), dtype=torch.float64, **hparams) for kind, hparams in (
            (ANDMask, {"tau": tau}), (ERM, {}),
        ))  # fmt: skip
        expected = gradients(erm, batches)
        for name, gradient in gradients(mask, batches).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_mask_that_keeps_nothing_leaves_zeros(rescale, monkeypatch):
    algorithm = small(ANDMask, 2, rescale=rescale)
    weights = list(algorithm.parameters())

    def opposed(batches, domain):
        return sum((p + 1).square().sum() for p in weights) * (1 - 2 * domain)

    monkeypatch.setattr(algorithm, "domain_loss", opposed)
    left = gradients(algorithm, made_up((4, 4)))
    assert len(left) == len(weights)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in left.values())


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(ANDMask, dropout=0.3, tau=0.5), optimizer, 3, 5)


def test_the_graph_is_kept_where_it_is_asked_for():
    algorithm = _tiny(ANDMask, 2)
    batches = made_up((4, 4), dtype=torch.float64)
    algorithm.backward(batches, create_graph=True)
    weight = algorithm.network.classifier.weight
    mask = weight.grad.detach() != 0
    row = torch.autograd.grad(weight.grad.sum(), weight)[0]
    mean = torch.stack(algorithm.domain_losses(batches)).mean()
    gradient = torch.autograd.grad(mean, weight, create_graph=True)[0]
    torch.testing.assert_close(row, torch.autograd.grad((gradient * mask).sum(), weight)[0], rtol=1e-9, atol=1e-13)
    algorithm.zero_grad()


def test_every_domain_has_a_forward_and_a_backward_pass_of_its_own_and_no_other(monkeypatch):
    steps = steps_of(small(ANDMask, 3))
    counts, predict = [], steps.algorithm.predict
    monkeypatch.setattr(steps.algorithm, "predict", lambda images: counts.append(len(images)) or predict(images))
    steps.take(made_up((4, 3, 2)), 1)
    assert counts == [4, 3, 2]


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_hyperparameters_out_of_range_are_refused(tau):
    with pytest.raises(ValueError, match=f"Invalid tau value: {tau}; it must be in"):
        small(ANDMask, tau=tau)


def test_defaults_are_domainbeds():
    assert draw(ANDMask.hparams, 0, 0) == {"tau": 1.0, "rescale": False}
    assert 0.5 <= draw(ANDMask.hparams, 1, 0)["tau"] < 1
