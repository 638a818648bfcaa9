"""SAM and ASAM themselves; what holds of all multi-pass optimizers is in test_multipass.py."""

import copy
import io

import pytest
import torch
from torch import nn

from shiftproof.optim import ASAM, SAM
from shiftproof.protocol import PROTOCOLS
from shiftproof.protocol.settings import search_space, setting


def test_the_norm_is_over_all_groups():
    p, q = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0]))
    seen = []
    optimizer = SAM([{"params": [p]}, {"params": [q], "rho": 1.0}], torch.optim.SGD, rho=0.5, lr=0.0)

    def closure():
        optimizer.zero_grad()
        seen.append((p.item(), q.item()))
        loss = 0.5 * (p * p + q * q).sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    assert seen[1] == pytest.approx((3 + 0.5 * 3 / 5, 4 + 1.0 * 4 / 5))
    assert (p.item(), q.item()) == (3.0, 4.0)


def test_the_norm_of_many_elements_is_that_of_their_squares():
    """Sums are taken in blocks."""
    p = nn.Parameter(torch.ones(3, 70_000))
    optimizer = SAM([p], torch.optim.SGD, rho=1.0, lr=1.0)

    def closure():
        optimizer.zero_grad()
        (0.5 * p.square().sum()).backward()

    optimizer.step(closure)
    torch.testing.assert_close(p.detach(), torch.full_like(p, -((3 * 70_000) ** -0.5)), rtol=1e-4, atol=0)


def test_mixed_precision_parameters_are_perturbed_in_their_own():
    p, q = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([4.0], dtype=torch.bfloat16))
    seen = []
    optimizer = SAM([p, q], torch.optim.SGD, rho=5.0, lr=0.0)

    def closure():
        optimizer.zero_grad()
        seen.append((p.item(), q.item()))
        (0.5 * (p * p + q * q).sum()).backward()

    optimizer.step(closure)
    assert seen == [(3.0, 4.0), (6.0, 8.0)]
    assert (p.dtype, q.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_counts_a_batch_once(momentum):
    norm, plain = nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer = SAM(norm.parameters(), torch.optim.SGD, lr=0.1)

    def closure():
        optimizer.zero_grad()
        norm(inputs).square().sum().backward()

    optimizer.step(closure)
    plain(inputs)
    for ours, theirs in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert norm.track_running_stats


def _normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 6), nn.LayerNorm(6), nn.Linear(6, 3),
    ).double()  # fmt: skip
    for p in model.parameters():  # factors and biases apart from 1 and 0
        nn.init.normal_(p, 0.5, 0.5)
    return model, torch.randn(8, 2, 6, dtype=torch.float64), torch.randint(3, (8,))


def _named_step(model, images, labels, base, rho, eta):
    """One step in units of the size of every parameter that is called a weight, parameter by parameter."""
    loss = nn.functional.cross_entropy(model(images), labels)
    base.zero_grad()
    loss.backward()
    units = {name: p.detach().abs() + eta if "weight" in name else None for name, p in model.named_parameters()}
    squares = 0.0
    for name, p in model.named_parameters():
        scaled = p.grad if units[name] is None else p.grad * units[name]
        squares += float(scaled.square().sum())
    before = copy.deepcopy(model.state_dict())  # statistics too: a batch counts once
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += rho * (p.grad if units[name] is None else p.grad * units[name] ** 2) / (squares**0.5 + 1e-16)
    base.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    model.load_state_dict(before)
    base.step()
    return loss.detach()


def _closure(model, images, labels, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_asam_by_name_takes_the_steps_of_its_authors_code(base, foreach):
    model, images, labels = _normed()
    reference = copy.deepcopy(model)
    optimizer = ASAM(model.named_parameters(), base, rho=0.7, eta=0.02, by_name=True, lr=0.05, foreach=foreach)
    plain = base(reference.parameters(), lr=0.05)
    for _ in range(5):
        loss = optimizer.step(_closure(model, images, labels, optimizer))
        expected = _named_step(reference, images, labels, plain, 0.7, 0.02)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=name)


def test_asam_by_name_differs_only_by_vectors_that_are_called_weights():
    def stepped(names, group):
        model, images, labels = _normed()
        named = list(zip(names, model.parameters(), strict=True))
        optimizer = ASAM([{"params": named, **group}], torch.optim.SGD, lr=0.1)
        optimizer.step(_closure(model, images, labels, optimizer))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    named = dict(_normed()[0].named_parameters())
    by_dimensions = [f"{i}.{'weight' if p.ndim > 1 else 'bias'}" for i, p in enumerate(named.values())]
    expected = stepped(named, {})
    assert torch.equal(stepped(by_dimensions, {"by_name": True}), expected)
    assert not torch.equal(stepped(named, {"by_name": True}), expected)


def test_asam_by_name_goes_on_after_loading_bit_equal():
    results = []
    for stops in (False, True):
        model, images, labels = _normed()
        optimizer = ASAM(model.named_parameters(), torch.optim.Adam, by_name=True, lr=0.05)
        for step in range(6):
            if stops and step == 3:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = ASAM(model.named_parameters(), torch.optim.Adam, lr=0.1)
                optimizer.load_state_dict(torch.load(file, weights_only=True))
            optimizer.step(_closure(model, images, labels, optimizer))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_asam_by_name_asks_for_names():
    model, images, labels = _normed()
    start = copy.deepcopy(list(model.parameters()))
    optimizer = ASAM(model.parameters(), torch.optim.SGD, by_name=True, lr=0.1)
    with pytest.raises(ValueError, match=r"tells parameters apart by_name, .* give it model\.named_parameters\(\)"):
        optimizer.step(_closure(model, images, labels, optimizer))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_dialects_of_published_code_take_asam_by_name():
    space = search_space("PACS", "photographs", True, "erm", "asam", "none", "protocol")
    for dialect in PROTOCOLS:
        for hparam_seed in (0, 3):
            by_name = setting(space, {}, hparam_seed, 0, dialect).get("optimizer.by_name", False)
            assert by_name is (dialect != "shiftproof")
