import pytest
import torch

from algorithms.made_up_runs import assert_continues_bit_equal, domain_losses, made_up, small, steps_of
from shiftproof.algorithms import ERM
from shiftproof.algorithms.fish import Fish
from shiftproof.base.randomness import torch_seed
from shiftproof.protocol.settings import setting


def _order(step, domains):
    """The order of the domains, as the step draws it: known by the seed of a step alone."""
    generator = torch.Generator().manual_seed(torch_seed(0, "annealer", step))
    return torch.randperm(domains, generator=generator).tolist()


@pytest.mark.parametrize("counts", [(5,), (3, 4), (2, 5, 3), (1, 2, 3, 2, 1)])
def test_steps_are_those_of_the_transcription(counts):
    """Algorithm 1 with plain gradient descent inside."""
    lr, meta_lr = 0.05, 0.3
    steps = steps_of(small(Fish, len(counts), dtype=torch.float64, meta_lr=meta_lr), "sgd", lr=lr)
    steps.algorithm.optimizers["all"].param_groups[0]["momentum"] = 0.0
    reference = small(ERM, len(counts), dtype=torch.float64)
    weights = list(reference.parameters())
    for step in range(1, 4):
        batches = made_up(counts, dtype=torch.float64, seed=step)
        start = [w.detach().clone() for w in weights]
        losses = []
        for domain in _order(step, len(counts)):
            loss = domain_losses(reference, batches)[domain]
            losses.append(loss.detach())
            gradient = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, g in zip(weights, gradient, strict=True):
                    w -= lr * g
        with torch.no_grad():
            for w, before in zip(weights, start, strict=True):
                w.copy_(before + meta_lr * (w - before))
        torch.testing.assert_close(steps.take(batches, step), torch.stack(losses).mean(), rtol=1e-9, atol=0)
    for p, expected in zip(steps.algorithm.parameters(), weights, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-7, atol=1e-10)


def test_all_the_way_it_is_erm_domain_by_domain():
    fish = steps_of(small(Fish, 3, dropout=0.5, meta_lr=1.0), "adam")
    erm = steps_of(small(ERM, 3, dropout=0.5), "adam")
    batches = made_up((4, 4, 4))
    fish.take(batches, 1)
    for domain in _order(1, 3):
        erm.take([batches[domain]], 1)
    for p, expected in zip(fish.algorithm.parameters(), erm.algorithm.parameters(), strict=True):
        torch.testing.assert_close(p, expected)
    assert fish.passes == 1  # over every domain's batch


def test_to_first_order_it_ascends_the_inner_product_of_the_gradients():
    """Theorem 3.1: averaged over both orders, the step deviates from ERM's by half the gradient of the product."""
    reference = small(ERM, dtype=torch.float64)
    weights = list(reference.parameters())
    batches = made_up((4, 4), dtype=torch.float64)
    losses = domain_losses(reference, batches)
    first, second = (torch.autograd.grad(loss, weights, create_graph=True) for loss in losses)
    product = sum((a * b).sum() for a, b in zip(first, second, strict=True))
    ascent = torch.autograd.grad(product, weights)
    lr = 1e-5
    moved = []
    for order in (batches, batches[::-1]):
        steps = steps_of(small(Fish, dtype=torch.float64, meta_lr=1.0), "sgd", lr=lr)
        steps.algorithm.optimizers["all"].param_groups[0]["momentum"] = 0.0
        steps.take(order, 1)
        moved.append([p.detach().clone() for p in steps.algorithm.parameters()])
    deviations = [
        ((one + other) / 2 - (w - lr * (a + b))).detach() / lr**2
        for w, a, b, one, other in zip(weights, first, second, *moved, strict=True)
    ]
    found, expected = (torch.cat([part.flatten() for part in parts]) for parts in (deviations, ascent))
    torch.testing.assert_close(found.norm(), expected.norm() / 2, rtol=1e-3, atol=0)
    assert (found - expected / 2).norm() < 1e-3 * expected.norm()


def test_the_order_of_the_domains_changes_from_step_to_step():
    assert len({tuple(_order(step, 3)) for step in range(1, 30)}) == 6


def test_statistics_of_batch_norms_stay_what_the_inner_steps_left():
    counted = {}
    for meta_lr in (0.01, 1.0):
        algorithm = small(Fish, 2, meta_lr=meta_lr)
        algorithm.network.featurizer.append(torch.nn.BatchNorm1d(64))
        steps = steps_of(algorithm)
        steps.take(made_up((4, 4)), 1)
        counted[meta_lr] = algorithm.network.featurizer[-1]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(counted[0.01], name), getattr(counted[1.0], name))
    assert counted[1.0].num_batches_tracked == 2


def _normalised(kind, domains, **hparams):
    """With a batch norm that trains."""
    algorithm = small(kind, domains, **hparams)
    algorithm.network.featurizer.append(torch.nn.BatchNorm1d(64))
    return algorithm.double()


@pytest.mark.parametrize("counts", [(5,), (2, 5, 3)])
def test_as_in_domainbed_the_domains_are_taken_in_order_and_statistics_go_part_of_the_way(counts):
    """All of a state dict is moved, after steps of one Adam on a copy."""
    fish = _normalised(Fish, len(counts), meta_lr=0.3, fixed_order=True, interpolates_buffers=True)
    steps = steps_of(fish, "adam", lr=0.02)
    copied = _normalised(ERM, len(counts))
    adam = torch.optim.Adam(copied.parameters(), lr=0.02)
    meta = {name: value.clone() for name, value in copied.state_dict().items()}
    for step in range(1, 5):
        copied.load_state_dict(meta)
        losses = []
        batches = made_up(counts, dtype=torch.float64, seed=step)
        for images, labels in batches:
            loss = torch.nn.functional.cross_entropy(copied.predict(images), labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
        for name, reached in copied.state_dict().items():
            if reached.is_floating_point():
                meta[name] = meta[name] + 0.3 * (reached - meta[name])
        torch.testing.assert_close(steps.take(batches, step), torch.stack(losses).mean(), rtol=1e-10, atol=0)
    found = fish.state_dict()
    for name, expected in meta.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-11)


def test_the_buffers_option_moves_statistics_alone():
    left = []
    for interpolates in (False, True):
        algorithm = _normalised(Fish, 2, meta_lr=0.25, fixed_order=True, interpolates_buffers=interpolates)
        steps_of(algorithm).take(made_up((4, 4), dtype=torch.float64), 1)
        left.append(algorithm.state_dict())
    whole, part = (next(v for name, v in state.items() if "running_mean" in name) for state in left)
    torch.testing.assert_close(part, whole / 4, rtol=1e-12, atol=0)  # it starts at 0
    assert all(torch.equal(left[0][name], left[1][name]) for name in left[0] if not name.endswith(("mean", "var")))


def test_accumulation_takes_the_same_step():
    whole, parts = (steps_of(small(Fish), "sgd", **options) for options in ({}, {"accumulate": 2}))
    for steps in (whole, parts):
        steps.take(made_up((4, 4)), 1)
    for p, q in zip(whole.algorithm.parameters(), parts.algorithm.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sam", "genie", "adahessian"])
def test_a_run_continues_bit_equal(optimizer):
    assert_continues_bit_equal(lambda: small(Fish, dropout=0.3), optimizer, 3, 5)


def test_a_run_as_in_domainbed_continues_bit_equal():
    def build():
        return _normalised(Fish, 2, dropout=0.3, fixed_order=True, interpolates_buffers=True).float()

    assert_continues_bit_equal(build, "sam", 3, 5)


@pytest.mark.parametrize("meta_lr", [0.0, 1.5, float("nan")])
def test_hyperparameters_out_of_range_are_refused(meta_lr):
    with pytest.raises(ValueError, match=f"Invalid meta_lr value: {meta_lr}; it must be in"):
        small(Fish, meta_lr=meta_lr)


def test_defaults_are_domainbeds():
    space = {"algorithm": Fish.hparams}
    assert setting(space, {}, 0, 0) == {"algorithm.meta_lr": 0.5}
    assert setting(space, {}, 1, 0)["algorithm.meta_lr"] in (0.05, 0.1, 0.5)
