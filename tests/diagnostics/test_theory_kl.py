"""The statements of docs/explanation/theory_kl.md, section 4."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

SIZE = 7


@pytest.fixture
def terms():
    """Leaf tensors: means and variances of posterior and prior."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    variances = 0.2 + torch.rand(2, SIZE, generator=generator, dtype=torch.float64)
    return [t.clone().requires_grad_() for t in (means[0], variances[0], means[1], variances[1])]


def _kl(mean, variance, prior_mean, prior_variance):
    posterior = Independent(Normal(mean, variance.expand(SIZE).sqrt()), 1)
    return kl_divergence(posterior, Independent(Normal(prior_mean, prior_variance.expand(SIZE).sqrt()), 1))


def test_gradients_of_the_divergence_of_diagonal_gaussians(terms):
    theta, variance, theta_0, variance_0 = terms
    found = torch.autograd.grad(_kl(*terms), terms)
    difference = (theta - theta_0).detach()
    v, v_0 = variance.detach(), variance_0.detach()
    expected = [
        difference / v_0,
        (1 / v_0 - 1 / v) / 2,
        -difference / v_0,
        (1 / v_0 - (v + difference**2) / v_0**2) / 2,
    ]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradient_by_one_common_variance(terms):
    theta, _, theta_0, _ = (t.detach() for t in terms)
    variance, prior_variance = (
        torch.tensor([0.7], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.4]).double(),
    )
    [found] = torch.autograd.grad(_kl(theta, variance, theta_0, prior_variance), variance)
    torch.testing.assert_close(found, SIZE / 2 * (1 / prior_variance - 1 / variance.detach()))


def _one_step():
    """A gradient field g(theta) = A theta, an update theta - q g(theta), and the gradients' variances."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    theta = torch.randn(SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
    q, noise = 0.1 + 0.9 * torch.rand(2, SIZE, generator=generator, dtype=torch.float64)
    return matrix, theta, q, noise


def test_the_published_gradient_is_by_the_prior_mean_with_the_posterior_held():
    matrix, theta, q, noise = _one_step()
    g = (matrix @ theta).detach()
    after = theta.detach() - q * g
    [found] = torch.autograd.grad(_kl(after, q**2 * noise, theta, noise), theta)
    torch.testing.assert_close(found, q / noise * g)


def test_by_the_posterior_mean_it_points_the_other_way():
    matrix, theta, q, noise = _one_step()
    g = (matrix @ theta).detach()
    after = (theta.detach() - q * g).requires_grad_()
    [found] = torch.autograd.grad(_kl(after, q**2 * noise, theta.detach(), noise), after)
    torch.testing.assert_close(found, -q / noise * g)
    # descending the divergence takes back the step of the loss
    returned = after.detach() - noise * found
    torch.testing.assert_close(returned, theta.detach())


def test_with_the_step_a_function_of_the_weights_the_total_gradient_is_another():
    matrix, theta, q, noise = _one_step()
    g = matrix @ theta
    [found] = torch.autograd.grad(_kl(theta - q * g, q**2 * noise, theta, noise), theta)
    torch.testing.assert_close(found, (matrix.T @ (q**2 * g / noise)).detach())
    # with a gradient that does not depend on the weights it is 0
    constant = g.detach()
    [found] = torch.autograd.grad(_kl(theta - q * constant, q**2 * noise, theta, noise), theta)
    torch.testing.assert_close(found, torch.zeros_like(found))


def test_the_divergence_is_least_at_another_q_and_has_no_bound_as_q_goes_to_zero():
    matrix, theta, _, noise = _one_step()
    theta = theta.detach()
    g = matrix @ theta

    def divergence(q):
        return _kl(theta - q * g, q**2 * noise, theta, noise)

    best = (1 / (1 + g**2 / noise)).sqrt().requires_grad_()
    [gradient] = torch.autograd.grad(divergence(best), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    adapted = g**2 / (g**2 + noise)  # the variance adaptation factor E[g]^2 / E[g^2]
    assert float(divergence(adapted)) > float(divergence(best.detach())) + 1
    # about -log q an element
    tiny = torch.full_like(g, 1e-6)
    assert float(divergence(tiny)) == pytest.approx(-SIZE * (torch.tensor(1e-6).double().log().item() + 0.5), rel=1e-6)
