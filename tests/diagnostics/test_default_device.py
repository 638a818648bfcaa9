"""What is measured or annealed does not depend on ``torch.set_default_device``: no tensor of ours follows it."""

import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.annealing import GGA, GGAL
from shiftproof.diagnostics import (
    Recorder,
    flat_weights,
    gradient_agreement,
    gradient_moments,
    losses_on_plane,
    osgr_by_definition,
    osgr_of_moments,
    principal_plane,
    sharpness,
    simulate,
)
from shiftproof.optim import OPTIMIZERS


def measured(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    parameters = list(model.parameters())
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(2)]
    loss = F.cross_entropy
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    annealers = GGA(radius=1e-3, candidates=3, start=1, end=3), GGAL()
    losses = [lambda x=x, y=y: loss(model(x), y) for x, y in batches]
    path = [flat_weights(model)]
    found = []
    with torch.device(device):
        with Recorder(model, optimizer, loss, fresh=lambda step: batches) as recorder:
            for step in range(1, 4):
                for annealer in annealers:
                    annealer.before_step(parameters, step, losses, parameters)
                optimizer.zero_grad()
                losses[0]().backward()
                for annealer in annealers:
                    annealer.edit_gradients(parameters, step, losses)
                optimizer.step()
                path.append(flat_weights(model))
        halves = [gradient_moments(model, [[batch]], loss) for batch in batches]
        plane = principal_plane([path])
        found += [recorder.osgr(), recorder.records]
        found += [gradient_agreement(model, loss, batches), osgr_of_moments(*halves, n=8)]
        found += [losses_on_plane(model, loss, batches, plane, *plane.grid(3)), sharpness(model, loss, batches)]
        found += [osgr_by_definition(model, loss, [([batches[0]], [batches[1]])] * 2, None, 0.1)]
        found += [simulate({"SGD": OPTIMIZERS["genie"]}, steps=3, runs=2, tuning_runs=1)]
    return repr(found), path


def test_nothing_follows_the_default_device():
    (here, path), (elsewhere, other_path) = measured("cpu"), measured("meta")
    assert here == elsewhere
    assert all(map(torch.equal, path, other_path))
