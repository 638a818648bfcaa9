"""Directions and planes in weight space, against NumPy's singular vectors and losses taken at the weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.diagnostics import plane as module
from shiftproof.diagnostics.filters import filter_normalised_directions
from shiftproof.diagnostics.mean_loss import flat_weights
from shiftproof.diagnostics.plane import Plane, losses_on_plane, plane_figure, principal_plane


def walk(steps, size=500, seed=0, start=None, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    drift = torch.randn(size, generator=random, dtype=torch.float64)
    moves = drift + torch.randn(steps, size, generator=random, dtype=torch.float64)
    start = torch.randn(size, generator=random, dtype=torch.float64) if start is None else start.double()
    return [start.to(dtype), *(start + moves.cumsum(dim=0)).to(dtype)]


def singular(snapshots, origin):
    distances = torch.stack(list(snapshots)).double().numpy() - origin.double().numpy()
    left, values, right = np.linalg.svd(distances, full_matrices=False)
    return left[:, :2] * values[:2], right[:2], values**2 / (values**2).sum()


@pytest.mark.parametrize("block", [64, 2**18])
def test_the_plane_of_one_path_is_that_of_its_singular_vectors_around_the_end(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    path = walk(12)
    plane = principal_plane([path])
    coordinates, directions, shares = singular(path, path[-1])
    assert torch.equal(plane.origin, path[-1])
    signs = np.sign((directions * plane.directions.numpy()).sum(axis=1))
    np.testing.assert_allclose(plane.directions.numpy(), signs[:, None] * directions, atol=1e-10)
    np.testing.assert_allclose(plane.paths[0].numpy(), signs * coordinates, atol=1e-9)
    np.testing.assert_allclose(plane.explained, shares[:2], rtol=1e-10)
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(plane.paths[0][-1], 0, atol=1e-9)
    farthest = plane.paths[0].abs().argmax(dim=0)
    assert (plane.paths[0].gather(0, farthest[None]) > 0).all()


def test_several_paths_share_the_plane_of_all_their_snapshots_around_the_start():
    start = torch.randn(300, generator=torch.Generator().manual_seed(9))
    paths = [walk(steps, 300, seed, start, torch.float32) for seed, steps in enumerate((5, 9, 3))]
    plane = principal_plane(paths)
    coordinates, _, shares = singular([s for path in paths for s in path], start)
    assert plane.directions.dtype == torch.float32
    assert [tuple(path.shape) for path in plane.paths] == [(6, 2), (10, 2), (4, 2)]
    np.testing.assert_allclose(torch.cat(plane.paths).abs(), np.abs(coordinates), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(plane.explained, shares[:2], rtol=1e-6)
    assert torch.equal(plane.origin, start)
    for path, drawn in zip(paths, plane.paths, strict=True):  # coordinates are projections
        distances = torch.stack(path).double() - start
        torch.testing.assert_close(distances @ plane.directions.double().T, drawn, rtol=1e-5, atol=1e-4)
        assert drawn[0].abs().max() == 0


def test_paths_that_have_no_plane_are_refused():
    path = walk(3)
    with pytest.raises(ValueError, match="at least one path"):
        principal_plane([])
    with pytest.raises(ValueError, match="at least one path"):
        principal_plane([path, []])
    with pytest.raises(ValueError, match="begin with the same weights"):
        principal_plane([path, walk(3, seed=1)])
    with pytest.raises(ValueError, match=r"\(400,\), \(500,\)"):
        principal_plane([[*path, torch.zeros(400)]])
    with pytest.raises(ValueError, match="not finite"):
        principal_plane([[*path, torch.full((500,), torch.nan)]])
    for straight in ([path[0]], path[:2], [path[0], path[0]], [k * path[0] for k in range(5)]):
        with pytest.raises(ValueError, match="lie on a line"):
            principal_plane([straight])


def test_directions_have_the_norms_of_the_filters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    directions = filter_normalised_directions(model, seed=3)
    assert directions.shape == (2, len(flat_weights(model)))
    sizes = [p.numel() for p in model.parameters()]
    for direction in directions:
        for p, part in zip(model.parameters(), direction.split(sizes), strict=True):
            if p.ndim > 1:
                torch.testing.assert_close(part.view(len(p), -1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
            else:
                assert not part.any()
    first = directions[0]
    assert torch.equal(filter_normalised_directions(model, seed=3, count=1)[0], first)
    assert not torch.equal(filter_normalised_directions(model, seed=4)[0], first)
    wide = filter_normalised_directions(nn.Linear(4000, 1), seed=0, count=4)
    cosines = F.normalize(wide) @ F.normalize(wide).T
    assert (cosines - torch.eye(4)).abs().max() < 4 / 4000**0.5
    assert F.normalize(wide)[:, :-1].std() == pytest.approx(4000**-0.5, rel=0.05)
    model[0].requires_grad_(False)
    assert filter_normalised_directions(model, seed=3).shape == (2, 4 + 4 + 8 + 2)
    with pytest.raises(ValueError, match="there is no filter"):
        filter_normalised_directions(nn.LayerNorm(3), seed=0)


def small_net():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3)).double()
    model[1].running_mean += 0.5
    batches = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 7)]
    return model, batches


def test_losses_are_those_at_the_weights_of_the_plane():
    model, batches = small_net()
    plane = Plane(flat_weights(model), filter_normalised_directions(model, seed=0))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    xs, ys = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([0.0, 2.0])
    told = []
    losses = losses_on_plane(model, F.cross_entropy, batches, plane, xs, ys, lambda *counts: told.append(counts))
    assert told == [(done, 6) for done in range(1, 7)]
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    model.eval()
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            weights = plane.origin + x * plane.directions[0] + y * plane.directions[1]
            nn.utils.vector_to_parameters(weights, model.parameters())
            assert losses[row, column].item() == pytest.approx(F.cross_entropy(model(inputs), targets).item())
    assert losses.dtype == torch.float64


def test_a_plane_of_another_model_is_refused():
    model, batches = small_net()
    with pytest.raises(ValueError, match=r"among 10 weights .* of which 53 weights train"):
        losses_on_plane(
            model, F.cross_entropy, batches, Plane(torch.zeros(10), torch.zeros(2, 10)), torch.ones(1), torch.ones(1)
        )


def test_the_grid_covers_the_paths():
    path = walk(6)
    plane = principal_plane([path])
    xs, ys = plane.grid(11)
    for axis, along in zip((xs, ys), plane.paths[0].T, strict=True):
        assert len(axis) == 11
        extent = along.max() - along.min()
        assert along.min() - axis[0] == pytest.approx(0.15 * extent)
        assert axis[-1] - along.max() == pytest.approx(0.15 * extent)
    xs, ys = Plane(path[0], torch.stack(path[:2])).grid(3)
    assert xs.tolist() == ys.tolist() == [-1, 0, 1]


def test_the_figure_shows_every_path_where_it_projects_to():
    start = torch.zeros(40, dtype=torch.float64)
    plane = principal_plane([walk(4, 40, seed, start) for seed in range(2)])
    xs, ys = plane.grid(7)
    losses = 1 + xs.square() + ys[:, None].square()
    losses[0, 0], losses[1, 0] = torch.inf, torch.nan
    figure = plane_figure(plane, xs, ys, losses, ["SGD", "Adam"])
    axes = figure.axes[0]
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    for name, path in zip(("SGD", "Adam"), plane.paths, strict=True):
        np.testing.assert_allclose(drawn[name], path)
    assert f"{plane.explained[0]:.0%}" in axes.get_xlabel()
    levels = axes.collections[0].levels
    assert levels[0] == pytest.approx(losses[losses.isfinite()].min().item())
    assert levels[-1] == pytest.approx(losses[losses.isfinite()].max().item())
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[1] / levels[0]), rtol=1e-6)
    plane_figure(Plane(start, torch.eye(40)[:2].double()), xs, ys, torch.ones(7, 7))  # constant, and no path
    with pytest.raises(ValueError, match="2 paths need as many names, not 1"):
        plane_figure(plane, xs, ys, losses, ["SGD"])
    with pytest.raises(ValueError, match="no loss on the plane"):
        plane_figure(plane, xs, ys, losses * torch.nan, ["SGD", "Adam"])
