import pytest
import torch

from algorithms.made_up_runs import assert_continues_bit_equal, gradients, loss_of_image, made_up, small, steps_of
from draws import draw
from shiftproof.algorithms import ERM
from shiftproof.algorithms.gsnr_dropout import GSNRDropout


def _transcription(algorithm, batches, ratio):
    """One backward pass per image; the elements of the highest ratio of squared mean and variance are left out."""
    named = dict(algorithm.named_parameters())
    singles = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            singles.append(torch.autograd.grad(loss_of_image(algorithm, image, label), list(named.values())))
    kept = {}
    for name, parts in zip(named, zip(*singles, strict=True), strict=True):
        stacked = torch.stack([part.flatten() for part in parts])
        mean = stacked.mean(0)
        gsnr = (mean**2 / stacked.var(0, correction=0)).nan_to_num(nan=0.0)  # 0 / 0 of a dead unit predicts nothing
        left_out = gsnr.argsort(descending=True)[: int(ratio * len(gsnr))]
        mean[left_out] = 0
        kept[name] = mean.view_as(named[name])
    return kept


@pytest.mark.parametrize("counts", [(6,), (3, 4), (2, 5, 3)])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_gradients_are_those_of_the_transcription(counts, ratio):
    algorithm = small(GSNRDropout, len(counts), dtype=torch.float64, ratio=ratio)
    batches = made_up(counts, dtype=torch.float64)
    expected = _transcription(algorithm, batches, ratio)
    found = gradients(algorithm, batches)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-13)
        assert int((gradient == 0).sum()) >= int(ratio * gradient.numel())
    erm = small(ERM, len(counts), dtype=torch.float64)
    torch.testing.assert_close(algorithm.backward(batches), erm.backward(batches), rtol=1e-12, atol=0)


def test_without_a_ratio_it_is_erm():
    batches = made_up((4, 4))
    expected = gradients(small(ERM), batches)
    for name, gradient in gradients(small(GSNRDropout, ratio=0.0), batches).items():
        assert torch.equal(gradient, expected[name])


def test_equal_images_leave_no_noise_and_weights_without_a_gradient_stay():
    images, labels = made_up((1,))[0]
    batches = [(images.expand(4, -1, -1, -1), labels.expand(4))]
    algorithm = small(GSNRDropout, 1, ratio=0.5)
    assert algorithm.backward(batches).isfinite()
    assert all(p.grad.isfinite().all() for p in algorithm.parameters())


def test_neither_weights_nor_modes_nor_generators_change_beside_the_gradient():
    algorithm = small(GSNRDropout, dropout=0.5)
    algorithm.network.featurizer.append(torch.nn.BatchNorm1d(64))
    erm = small(ERM, dropout=0.5)
    erm.network.featurizer.append(torch.nn.BatchNorm1d(64))
    states = []
    for trained in (algorithm.train(), erm.train()):
        torch.manual_seed(0)
        trained.backward(made_up((4, 4)))
        states.append((torch.get_rng_state(), trained.state_dict()))
    assert torch.equal(states[0][0], states[1][0])
    assert all(torch.equal(value, states[1][1][name]) for name, value in states[0][1].items())
    assert all(module.training for module in algorithm.modules())


@pytest.mark.parametrize("optimizer", ["adam", "sam", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(GSNRDropout, dropout=0.3), optimizer, 3, 5)


def test_low_precision_computes_the_ratio_in_full():
    steps = steps_of(small(GSNRDropout), precision="bf16")
    assert steps.take(made_up((4, 4)), 1).isfinite()
    assert all(p.grad.dtype == torch.float32 for p in steps.algorithm.parameters())


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_hyperparameters_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match=f"Invalid ratio value: {ratio}; it must be in"):
        small(GSNRDropout, ratio=ratio)


def test_draws_are_around_the_default():
    assert draw(GSNRDropout.hparams, 0, 0) == {"ratio": 1 / 3}
    assert 0 <= draw(GSNRDropout.hparams, 1, 0)["ratio"] < 0.5
