"""Combinations that cannot work are refused before training, with the reason."""

import dataclasses

import pytest
import torch

from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.studies import FieldError, Study, make_plan
from shiftproof.training import check_combination, train

REASONS = {
    "gga alone": (
        {"annealer": "gga"}, 1, 300,
        "GGA compares the gradients of source domains: it needs at least two, not 1",
    ),
    "gga_l alone": (
        {"annealer": "gga_l"}, 1, 300,
        "GGA-L compares the gradients of source domains: it needs at least two, not 1",
    ),
    "window": (
        {"annealer": "gga"}, 3, 150,
        "GGA searches at steps 100 to 200, and the run has 150: train for longer, or set annealer.start and "
        "annealer.end",
    ),
    "no source": ({}, 0, 300, "leaving out 30 leaves no source domain to train on"),
    "too few": (
        {"algorithm": "pairs"}, 1, 300,
        "pairs needs at least 2 source domains, not 1",
    ),
    "held-out domains": ({"algorithm": "mldg"}, 1, 300, "mldg needs at least 2 source domains, not 1"),
    "halves": (
        {"algorithm": "irm", "hparams": {"data.batch_size": 1}}, 3, 300,
        "irm needs batches of at least 2 images per domain, not 1",
    ),
    "no graph": (
        {"algorithm": "pairs", "optimizer": "adahessian"}, 2, 300,
        "adahessian differentiates the gradient, but the gradient of pairs has no graph: use another optimizer",
    ),
    "parts": (
        {"algorithm": "pairs", "accumulate": 2}, 2, 300,
        "the loss of pairs is not the mean over parts of a batch: set accumulate to 1, not 2",
    ),
    "averaged context": (
        {"algorithm": "arm", "averaging": "swad"}, 3, 300,
        "swad re-estimates batch norms from the images of all domains together, but arm reads one domain at a time: "
        "use ema, or no averaging",
    ),
    "compiled, second order": (
        {"optimizer": "adahessian", "compile": True}, 3, 300,
        "adahessian differentiates the gradient, which torch.compile does not support: leave out compile",
    ),
    "compiled, gradients compared": (
        {"algorithm": "iga", "compile": True}, 3, 300,
        "iga differentiates the gradient, which torch.compile does not support: leave out compile",
    ),
    "compiled, a step ahead": (
        {"algorithm": "mldg", "compile": True, "hparams": {"data.batch_size": 4, "algorithm.first_order": False}},
        3, 300,
        "mldg differentiates the gradient, which torch.compile does not support: leave out compile, or set "
        "algorithm.first_order",
    ),
}  # fmt: skip


class _Pairs(ERM):
    min_domains = 2
    keeps_graph = False
    accumulates = False


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    """An algorithm that needs all that one can need."""
    monkeypatch.setitem(ALGORITHMS._entries, "pairs", _Pairs)


@pytest.mark.parametrize("case", list(REASONS))
def test_a_combination_that_cannot_work_is_refused_with_the_reason(case, make_spec):
    changes, domains, steps, message = REASONS[case]
    with pytest.raises(ValueError) as refused:
        check_combination(make_spec(**changes, steps=steps), domains)
    assert str(refused.value) == message


@pytest.mark.parametrize("annealer", ["none", "gga", "gga_l"])
def test_what_can_work_is_not_refused(annealer, make_spec):
    check_combination(make_spec(annealer=annealer, steps=200), 2)
    check_combination(make_spec(annealer=annealer, steps=200, algorithm="pairs"), 2)
    check_combination(make_spec(annealer=annealer, steps=200, optimizer="adahessian", accumulate=2), 2)


def test_training_refuses_before_it_writes(make_spec, digits, tmp_path):
    with pytest.raises(ValueError, match="GGA searches at steps 100 to 200, and the run has 12"):
        train(make_spec(annealer="gga"), digits, tmp_path / "run", device=torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_every_method_of_a_study_is_checked():
    study = Study(algorithms=("erm", "mldg"), optimizers=("adam",), trials=1, steps=6, single_source=True)
    with pytest.raises(FieldError, match="mldg needs at least 2 source domains, not 1") as refused:
        make_plan(study)
    assert refused.value.field == "algorithms"
    study = Study(algorithms=("erm", "irm"), optimizers=("adam",), trials=1, steps=6, fixed={"data.batch_size": 1})
    with pytest.raises(FieldError, match="irm needs batches of at least 2 images per domain, not 1"):
        make_plan(study)


def test_a_study_refuses_before_training():
    study = Study(optimizers=("adam",), annealers=("none", "gga"), targets=("0",), trials=1, steps=150)
    with pytest.raises(ValueError, match="GGA searches at steps 100 to 200, and the run has 150"):
        make_plan(study)
    assert make_plan(dataclasses.replace(study, steps=200))
    single = dataclasses.replace(study, steps=200, targets=None, single_source=True)
    with pytest.raises(ValueError, match="it needs at least two, not 1"):
        make_plan(single)
