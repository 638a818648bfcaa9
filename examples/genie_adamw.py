"""GENIEAdamW in a bare training loop, in AdamW's place: torch and shiftproof.optim alone, on made-up data."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shiftproof.optim import GENIEAdamW


def draw_batch(count: int = 64) -> tuple[Tensor, Tensor]:
    """Points inside and outside a circle."""
    points = 2 * torch.rand(count, 2) - 1
    return points, (points.square().sum(dim=1) < 0.6).long()


def main(steps: int = 300) -> tuple[float, float]:
    """Train, and return the losses of the first and the last step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = GENIEAdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    for _ in range(steps):
        points, labels = draw_batch()
        loss = F.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


if __name__ == "__main__":
    first, last = main()
    print(f"loss {first:.3f} at the first step, {last:.3f} at the last")
