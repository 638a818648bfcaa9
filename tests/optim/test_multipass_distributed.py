"""The multi-pass optimizers in two processes against one; the processes are those of `multipass_worker`."""

import os

import pytest
import torch

from processes import run_processes

from . import multipass_worker as worker

pytestmark = [
    pytest.mark.xdist_group("multipass_worker"),  # one start serves all
    pytest.mark.skipif(
        not (hasattr(os, "fork") and torch.distributed.is_gloo_available()),
        reason="needs processes that fork, and gloo",
    ),
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("multipass")
    output = run_processes(worker.__file__, folder)
    if output.startswith("stuck"):
        pytest.fail(output)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(worker.WORLD)]
    if any("error" in each for each in found):
        pytest.fail("\n".join([output, *(f"rank {i}: {each.get('error')}" for i, each in enumerate(found))]))
    return found


every_optimizer = pytest.mark.parametrize("name", worker.OPTIMIZERS)


def difference(run):
    return max((a.flatten() - b.flatten()).abs().max().item() for a, b in zip(run["several"], run["one"], strict=True))


@every_optimizer
def test_fully_sharded_is_one_process(findings, name):
    for found in findings:
        assert difference(found["fully_sharded"][name]) == 0


@pytest.mark.parametrize("name", worker.RELATIVE)
def test_fully_sharded_is_one_process_at_relative_radii_too(findings, name):
    for found in findings:
        run = found["relative_radius"][name]
        assert difference(run) == 0
        assert any(not torch.equal(a, b) for a, b in zip(run["one"], found["fully_sharded"][name]["one"], strict=True))


@every_optimizer
@pytest.mark.parametrize("check", ["one_direction", "own_directions"])
def test_replicas_are_one_process_or_the_mean_of_their_steps(findings, name, check):
    first, second = (found[check][name] for found in findings)
    assert all(map(torch.equal, first["several"], second["several"]))
    assert difference(first) < 1e-12


@every_optimizer
def test_directions_of_their_own_are_others(findings, name):
    """And what no process uses gets no gradient."""
    found = findings[0]
    kinds = (found[check][name]["several"] for check in ("one_direction", "own_directions"))
    assert max((a - b).abs().max() for a, b in zip(*kinds, strict=False) if a.shape == b.shape) > 1e-4
    assert found["own_directions"][name]["unused"] is None


@every_optimizer
@pytest.mark.parametrize("base", ["Adam", "GENIE"])
def test_a_sharded_checkpoint_continues_bit_equal(findings, name, base):
    for found in findings:
        assert difference(found["checkpoints"][name][base]) == 0
