"""Gradient moments against the matrix of all per-sample gradients, and against distributions that are known."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.diagnostics.moments import gradient_moments

SIZES = (23, 9, 14)


def batches(inputs, targets, *sizes):
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


def problem(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3)
    ).to(dtype)
    inputs = [torch.randn(size, 1, 7, 7, dtype=dtype) + 0.3 * index for index, size in enumerate(SIZES)]
    return model, [(x, torch.randint(3, (len(x),))) for x in inputs]


def gradient_matrix(model, inputs, targets):
    """One row per sample, all parameters in order, in float64."""
    model.eval()
    rows = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]).double().numpy())
    model.train()
    return np.stack(rows)


def identity_gradients(samples):
    """A model and batches whose per-sample gradients are the rows of ``samples``, and its loss."""
    model = nn.Linear(samples[0].shape[1], 1, bias=False, dtype=samples[0].dtype)
    return model, [[(rows, torch.zeros(len(rows)))] for rows in samples], lambda outputs, targets: outputs.mean()


def quantities(moments):
    return {name: moments.flat(name).numpy() for name in ("mean", "within", "between", "mean_error", "gsnr", "noise")}


def expected_quantities(matrices):
    means = np.stack([m.mean(0) for m in matrices])
    variances = np.stack([m.var(0, ddof=1) for m in matrices])
    counts = np.array([len(m) for m in matrices])[:, None]
    mean, within, sampling = means.mean(0), variances.mean(0), (variances / counts).mean(0)
    error = sampling / len(matrices)
    between = means.var(0, ddof=1) - sampling if len(matrices) > 1 else np.full_like(mean, np.nan)
    return {
        "mean": mean,
        "within": within,
        "between": between,
        "mean_error": error,
        "gsnr": (mean**2 - error) / within,
        "noise": np.abs(mean) < 1.96 * np.sqrt(error),
    }


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_moments_of_domains_are_those_of_the_matrix_of_gradients(chunk_size):
    model, domains = problem()
    matrices = [gradient_matrix(model, *domain) for domain in domains]
    uneven = [batches(*domains[0], 20, 2, 1), batches(*domains[1], 9), iter(batches(*domains[2], 1, 13))]
    moments = gradient_moments(model, uneven, F.cross_entropy, chunk_size=chunk_size)
    assert moments.counts == SIZES
    assert all(module.training for module in model.modules())
    for name, values in expected_quantities(matrices).items():
        np.testing.assert_allclose(quantities(moments)[name], values, rtol=1e-9, atol=1e-15, err_msg=name)
    for name, p in model.named_parameters():
        assert moments.gsnr[name].shape == p.shape
        assert moments.gsnr[name].dtype == torch.float64


def test_pooled_samples_are_one_domain_and_float32_is_close():
    model, domains = problem(torch.float32)
    whole = [torch.cat(parts) for parts in zip(*domains, strict=True)]
    expected = expected_quantities([gradient_matrix(model, *whole)])
    found = quantities(gradient_moments(model, [domains], F.cross_entropy, chunk_size=10))
    assert np.isnan(found["between"]).all()
    for name in ("mean", "within", "mean_error"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_corrections_take_the_bias_away():
    # 40,000 elements are as many draws of one experiment: three domains whose means have variance 0.04 around 0.5
    random = torch.Generator().manual_seed(1)
    elements, spreads, counts = 40_000, (1.0, 2.0, 0.5), (5, 8, 12)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    means = [0.5 + 0.2 * normal(1, elements) for _ in counts]
    samples = [m + s * normal(n, elements) for m, s, n in zip(means, spreads, counts, strict=True)]
    model, domains, loss = identity_gradients(samples)
    moments = gradient_moments(model, domains, loss)
    true_square = float(torch.cat(means).mean(0).square().mean())
    variances = [s**2 for s in spreads]
    within = sum(variances) / 3
    error = sum(v / n for v, n in zip(variances, counts, strict=True)) / 9
    assert float(moments.flat("within").mean()) == pytest.approx(within, rel=0.01)
    assert float(moments.flat("mean_error").mean()) == pytest.approx(error, rel=0.01)
    assert float(moments.flat("mean_square").mean()) == pytest.approx(true_square, abs=0.006)
    assert float(moments.flat("mean").square().mean()) == pytest.approx(true_square + error, abs=0.006)  # what it mends
    assert float(moments.flat("between").mean()) == pytest.approx(0.04, abs=0.006)


def test_a_mean_of_zero_is_noise_in_95_of_100_elements_and_a_clear_one_in_none():
    random = torch.Generator().manual_seed(2)
    zero = torch.randn(400, 20_000, generator=random, dtype=torch.float64)
    model, domains, loss = identity_gradients([torch.cat([zero, zero[:, :100] + 1], 1)])
    moments = gradient_moments(model, domains, loss)
    noise, gsnr = moments.flat("noise"), moments.flat("gsnr")
    assert float(noise[:20_000].double().mean()) == pytest.approx(0.95, abs=0.01)
    assert not noise[20_000:].any()
    assert float(gsnr[:20_000].mean()) == pytest.approx(0, abs=1e-4)
    assert float(gsnr[20_000:].mean()) == pytest.approx(1, abs=0.05)


def test_a_mean_far_above_the_spread_does_not_cancel():
    random = torch.Generator().manual_seed(3)
    samples = 1e6 + torch.randn(640, 50, generator=random, dtype=torch.float64)
    model, domains, loss = identity_gradients([samples])
    found = gradient_moments(model, domains, loss, chunk_size=16).flat("within")
    torch.testing.assert_close(found, samples.var(0), rtol=2e-3, atol=0)


def test_elements_without_a_gradient_have_no_gsnr():
    samples = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    model, domains, loss = identity_gradients([samples])
    gsnr = gradient_moments(model, domains, loss).flat("gsnr")
    assert gsnr[0].isnan()
    assert gsnr[1].isposinf()
    assert float(gsnr[2]) == pytest.approx((4 - 1) / 2)


def test_the_histogram_holds_every_element_that_has_a_logarithm():
    pytest.importorskip("matplotlib")
    model, domains = problem()
    moments = gradient_moments(model, [batches(x, y, len(x)) for x, y in domains], F.cross_entropy)
    gsnr, noise = moments.flat("gsnr"), moments.flat("noise")
    drawn = gsnr.isfinite() & (gsnr > 0)
    figure = moments.plot()
    clear, doubtful = (sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers)
    assert (clear, doubtful) == (int((drawn & ~noise).sum()), int((drawn & noise).sum()))
    share = f"{int((gsnr <= 0).sum()) / gsnr.numel():.1%}"
    assert share in figure.legends[0].get_texts()[-1].get_text()


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((), {}, "no domain"),
        ((4, 1), {}, "domain 1 has 1 samples"),
        ((4, 0), {}, "domain 1 has 0 samples"),
        ((4,), {"chunk_size": 0}, "Invalid chunk_size value: 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(sizes, options, message):
    loss = identity_gradients([torch.zeros(1, 2)])[2]
    domains = [[(torch.randn(size, 2), torch.zeros(size))] if size else [] for size in sizes]
    with pytest.raises(ValueError, match=message):
        gradient_moments(nn.Linear(2, 1, bias=False), domains, loss, **options)
