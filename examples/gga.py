"""Gradient-Guided Annealing in a bare training loop: torch and shiftproof.annealing alone, on made-up data."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.annealing import GGA


def draw_batch(domain: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Two classes; a second feature agrees with the label as often as the domain has it, and then misleads."""
    labels = torch.randint(2, (count,))
    shape = (2 * labels - 1) + 0.8 * torch.randn(count)
    style = (2 * labels - 1) * torch.where(torch.rand(count) < (0.9, 0.8, 0.6)[domain], 2.0, -2.0)
    return torch.stack([shape, style], dim=1), labels


def main(steps: int = 100) -> GGA:
    torch.manual_seed(0)
    featurizer, classifier = nn.Sequential(nn.Linear(2, 32), nn.ReLU()), nn.Linear(32, 2)
    model = nn.Sequential(featurizer, classifier)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    annealer = GGA(radius=1e-3, candidates=50, start=20, end=60)
    annealer.check(num_domains=3, steps=steps)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)

    for step in range(1, steps + 1):
        domain_losses = [partial(loss_of, *draw_batch(domain)) for domain in range(3)]
        annealer.before_step(model.parameters(), step, domain_losses, searched=featurizer.parameters())
        optimizer.zero_grad()
        torch.stack([domain_loss() for domain_loss in domain_losses]).sum().backward()
        optimizer.step()
    return annealer


if __name__ == "__main__":
    for name, value in main().report().items():
        print(f"{name}: {value:.4f}")
