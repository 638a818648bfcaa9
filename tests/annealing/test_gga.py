"""The search, against an independent transcription, and what it costs and leaves."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from annealing.made_up_domains import Counted, made_up
from shiftproof.annealing import ANNEALERS, GGA, GGAL, Annealer, domain_similarities
from shiftproof.base.randomness import generator
from shiftproof.protocol.settings import search_space, setting

OPTIONS = {"radius": 0.05, "candidates": 60, "tolerance": 0.05, "start": 3, "end": 5}


class Thorough(GGA):
    _rejects_early = False


def _draw(weights, seed, step, candidate, radius):
    random = generator(seed, "gga", step, candidate)
    draws = [random.random(tuple(w.shape), dtype=np.float32) for w in weights]
    return [torch.from_numpy((2 * np.float32(radius) * d - np.float32(radius)).astype(np.float64)) for d in draws]


def _similarity_and_loss(model, losses):
    gradients, total = [], 0.0
    for loss in losses:
        model.zero_grad()
        value = loss()
        value.backward()
        total += value.item()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return min(F.cosine_similarity(a, b, dim=0).item() for a, b in combinations(gradients, 2)), total / len(losses)


def _transcription(model, losses, seed, step, search):
    """Steps 1 to 3 of the reference, each point kept as a list of tensors; returns the best and the accepted."""
    weights = list(model[0].parameters())

    def put(values):
        with torch.no_grad():
            for w, value in zip(weights, values, strict=True):
                w.copy_(value)

    start = [w.detach().clone() for w in weights]
    best, (similarity, loss), current, accepted = start, _similarity_and_loss(model, losses), start, []
    for candidate in range(OPTIONS["candidates"]):
        origin = start if search == "ball" else current
        draws = _draw(weights, seed, step, candidate, OPTIONS["radius"])
        current = [o + d for o, d in zip(origin, draws, strict=True)]
        put(current)
        found, rise = _similarity_and_loss(model, losses)
        if found > similarity and rise < loss + OPTIONS["tolerance"]:
            best, similarity, loss = current, found, rise
            accepted.append(candidate)
            current = start
    put(start)
    return best, similarity, accepted


@pytest.mark.parametrize("search", ["ball", "walk"])
@pytest.mark.parametrize("domains", [2, 3, 5])
@pytest.mark.parametrize("kind", [GGA, Thorough])
def test_the_search_finds_what_the_transcription_finds(search, domains, kind):
    model, losses = made_up(domains)
    best, similarity, accepted = _transcription(model, losses, 7, 4, search)
    assert accepted
    annealer = kind(**OPTIONS, search=search, seed=7)
    before, _ = domain_similarities(model.parameters(), losses)
    annealer.before_step(model.parameters(), 4, losses, model[0].parameters())
    for p, expected in zip(model[0].parameters(), best, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-15)
    report = annealer.report()
    assert report["accepted"] == len(accepted)
    assert report["similarity_before"] == pytest.approx(before)
    assert report["similarity_after"] == pytest.approx(similarity)
    after, _ = domain_similarities(model.parameters(), losses)
    assert after == pytest.approx(similarity, abs=1e-12)
    assert after > before


@pytest.mark.parametrize("search", ["ball", "walk"])
def test_early_rejection_changes_no_bit_and_spares_passes(search):
    found, counts = [], []
    for kind in (Thorough, GGA):
        model, losses = made_up(5, torch.float32, dropout=0.3)
        counted = Counted(losses)
        annealer = kind(**OPTIONS, search=search)
        annealer.before_step(model.parameters(), 3, counted, model[0].parameters())
        assert counted.forward == counted.backward == annealer.totals["evaluations"]
        assert annealer.extra_passes == counted.forward / 5
        found.append(([p.detach().clone() for p in model.parameters()], annealer.report()["accepted"]))
        counts.append(counted.forward)
    assert found[0][1] == found[1][1] > 0
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert counts[0] == 5 * (OPTIONS["candidates"] + 1)  # one forward and backward per domain and candidate
    assert counts[1] < 0.6 * counts[0]


def test_nothing_accepted_leaves_every_weight_as_it_was():
    for search in ("ball", "walk"):
        model, losses = made_up(3, torch.float32)
        start = [p.detach().clone() for p in model.parameters()]
        annealer = GGA(candidates=30, start=1, end=1, radius=0.1, search=search)
        annealer._evaluate = lambda *args, original=annealer._evaluate: original(*args) if args[-1] is None else None
        annealer.before_step(model.parameters(), 1, losses)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
        report = annealer.report()
        assert (report["accepted"], report["similarity_after"]) == (0, report["similarity_before"])


def test_only_the_searched_weights_move_and_nothing_else_changes():
    model, losses = made_up(3, torch.float32, dropout=0.5, batch_norm=True)
    classifier = [p.detach().clone() for p in model[2].parameters()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = torch.get_rng_state()
    GGA(**OPTIONS).before_step(model.parameters(), 5, losses, model[0].parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model[2].parameters(), classifier, strict=True))
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_dropout_is_the_same_for_all_candidates_of_a_step_and_another_in_the_next():
    model, losses = made_up(2, torch.float32, dropout=0.5)
    masks = []
    model[1].register_forward_hook(lambda module, args, output: masks.append((output == 0).clone()))
    annealer = Thorough(radius=1e-7, candidates=3, start=1, end=2)
    drawn = []
    for step in (1, 2):
        annealer.before_step(model.parameters(), step, losses)
        assert len(masks) == 2 * 4
        drawn.append({tuple(mask.flatten().tolist()) for mask in masks})
        masks.clear()
    assert [len(one) for one in drawn] == [2, 2]  # one mask per domain
    assert not drawn[0] & drawn[1]


def test_the_search_is_active_from_start_to_end_both_included():
    model, losses = made_up(2)
    counted = Counted(losses)
    annealer = GGA(candidates=1, start=3, end=5)
    active = []
    for step in range(1, 8):
        before = counted.forward
        annealer.before_step(model.parameters(), step, counted)
        if counted.forward > before:
            active.append(step)
    assert active == [3, 4, 5]
    assert GGA().end - GGA().start + 1 == 101
    assert annealer.planned_passes(2, 7, 1) == 3 * 2
    assert annealer.planned_passes(2, 4, 1) == 2 * 2


def test_draws_are_functions_of_seed_step_and_candidate_within_the_radius():
    weights = [torch.zeros(100, 100), torch.zeros(5)]

    def draw(seed, step, candidate):
        moved = [torch.zeros_like(w) for w in weights]
        GGA(radius=0.5, seed=seed)._perturb(moved, step, candidate)
        return moved

    one = draw(1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, draw(1, 2, 3), strict=True))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(one[0], draw(*other)[0])
    assert one[0].abs().max() <= 0.5
    assert abs(one[0].mean()) < 0.01
    assert one[0].var() == pytest.approx(1 / 12, rel=0.05)


def test_one_copy_of_the_searched_weights_is_held(monkeypatch):
    model, losses = made_up(3)
    clones = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, *a, **k: clones.append(t.numel()) or clone(t, *a, **k))
    annealer = GGA(**OPTIONS, search="walk")
    annealer.before_step(model.parameters(), 3, losses, model[0].parameters())
    assert annealer.report()["accepted"] > 0
    assert sum(clones) == sum(p.numel() for p in model[0].parameters())


def test_a_loss_that_is_not_finite_moves_nothing_and_reports_none():
    model, losses = made_up(2)
    start = [p.detach().clone() for p in model.parameters()]
    annealer = GGA(**OPTIONS)
    annealer.before_step(model.parameters(), 3, [losses[0], lambda: losses[1]() * math.nan])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    assert annealer.report()["similarity_before"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "Invalid radius value: 0.0; it must be above 0"),
        ({"radius": math.nan}, "Invalid radius"),
        ({"radius": "x"}, "Invalid radius value: 'x'; it must be a number"),
        ({"tolerance": None}, "Invalid tolerance value: None; it must be a number"),
        ({"start": "x"}, "Invalid start value: 'x'; it must be a whole number, at least 0"),
        ({"tolerance": -0.1}, "Invalid tolerance value: -0.1; it must be at least 0"),
        ({"candidates": 0}, "Invalid candidates value: 0; it must be a whole number, at least 1"),
        ({"candidates": 2.5}, "Invalid candidates value: 2.5"),
        ({"start": -1}, "Invalid start value: -1; it must be a whole number, at least 0"),
        ({"start": 300}, "Invalid end value: 200; it must be a whole number, at least 300"),
        ({"search": "sphere"}, "Invalid search value: sphere; it must be one of ball, walk"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GGA(**options)


@pytest.mark.parametrize("kind", [GGA, GGAL])
def test_one_domain_is_refused(kind):
    model, losses = made_up(1)
    name = {GGA: "GGA", GGAL: "GGA-L"}[kind]
    message = f"{name} compares the gradients of source domains: it needs at least two, not 1"
    with pytest.raises(ValueError, match=message):
        kind().check(1, 1000)
    act = {GGA: GGA().before_step, GGAL: GGAL().edit_gradients}[kind]
    with pytest.raises(ValueError, match=message):
        act(model.parameters(), 100, losses)


def test_both_are_registered_with_the_published_hyperparameters():
    published = {"radius": 1e-5, "candidates": 250, "tolerance": 0.1, "start": 100, "end": 200, "search": "ball"}
    for name, kind, defaults in (("gga", GGA, published), ("gga_l", GGAL, {"gamma": 0.001, "noise": "uniform"})):
        assert ANNEALERS[name] is kind
        assert {name: hparam.default for name, hparam in kind.hparams.items()} == defaults
        built = kind()
        assert all(getattr(built, name) == value for name, value in defaults.items())
    assert Annealer().report() is None
    assert Annealer().extra_passes == 0


def test_frozen_weights_are_not_searched_and_a_failure_puts_the_weights_back():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model[0].requires_grad_(False)
    inputs = [torch.randn(8, 4) for _ in range(3)]
    losses = [lambda x=x: model(x).square().mean() for x in inputs]
    annealer = GGA(radius=1e-2, candidates=20, start=1, end=1, tolerance=1.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    annealer.before_step(model.parameters(), 1, losses, searched=model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model[0].named_parameters(prefix="0"))

    calls = 0  # of all domains: an early rejection may pass over any one of them

    def breaks(loss):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise MemoryError
        return loss()

    before = [p.clone() for p in model.parameters()]
    walk = GGA(radius=1e-2, candidates=20, start=1, end=1, search="walk")
    with pytest.raises(MemoryError):
        walk.before_step(model.parameters(), 1, [lambda loss=loss: breaks(loss) for loss in losses])
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["frozen", "empty"])
def test_with_all_that_is_searched_frozen_it_warns_once_and_does_nothing(kind):
    def train(annealer):
        model, losses = made_up(3, torch.float32, dropout=0.5, batch_norm=True)
        model[0].requires_grad_(False)
        counted = Counted(losses)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(3)
        for step in range(1, 5):
            annealer.before_step(model.parameters(), step, counted, model[0].parameters() if kind == "frozen" else [])
            optimizer.zero_grad()
            sum(loss() for loss in losses).backward()
            optimizer.step()
        return model, counted.forward, torch.get_rng_state()

    annealer = GGA(start=2, end=4, candidates=5)
    with pytest.warns(UserWarning, match="GGA searches nothing: all parameters that it may move are frozen") as told:
        model, evaluated, state = train(annealer)
    assert len(told) == 1
    plain, _, plain_state = train(Annealer())
    assert evaluated == 0
    assert torch.equal(state, plain_state)
    for (name, found), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    report = annealer.report()
    assert (report["accepted"], report["extra_passes"], report["similarity_before"]) == (0, 0, None)


def test_it_searches_again_once_something_is_unfrozen():
    model, losses = made_up(2)
    annealer = GGA(**OPTIONS)
    model.requires_grad_(False)
    with pytest.warns(UserWarning, match="searches nothing"):
        annealer.before_step(model.parameters(), 3, losses)
    model.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annealer.before_step(model.parameters(), 4, losses)
    assert annealer.totals["steps"] == 1
    assert annealer.totals["evaluations"] > 0


def test_the_dialect_swad_searches_as_the_released_trainer():
    """It walks, and counts its steps from 0; GGA-L's noise is normal there."""
    expected = {"start": 101, "end": 201, "search": "walk"}
    for dialect, options in (("swad", expected), ("domainbed", {}), ("shiftproof", {})):
        space = search_space("PACS", "photographs", True, "erm", "adam", "gga", "short")
        values = setting(space, {}, 0, 0, dialect)
        ours = {name: hparam.default for name, hparam in GGA.hparams.items()}
        assert {name: values[f"annealer.{name}"] for name in GGA.hparams} == {**ours, **options}
    space = search_space("PACS", "photographs", True, "erm", "adam", "gga_l", "short")
    noises = [setting(space, {}, 0, 0, dialect)["annealer.noise"] for dialect in ("swad", "domainbed", "shiftproof")]
    assert noises == ["normal", "uniform", "uniform"]
