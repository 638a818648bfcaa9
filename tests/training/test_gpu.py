"""Runs on a GPU."""

import dataclasses

import pytest
import torch

from shiftproof.data import DATASETS
from shiftproof.training import train
from training.ranks.parallel_worker import spec_of

pytestmark = pytest.mark.cuda
DIGITS = DATASETS["rotated_digits"].open(None, None)


def _trained(folder, device, **changes):
    spec = dataclasses.replace(spec_of("coral", "adam"), device=device, **changes)
    return train(spec, DIGITS, folder, device=torch.device(device))


def test_a_run_is_that_on_the_cpu_to_rounding_and_repeats_bit_for_bit(tmp_path):
    cpu, first, second = (_trained(tmp_path / n, d) for n, d in (("cpu", "cpu"), ("a", "cuda"), ("b", "cuda")))
    assert {**first, "seconds": None} == {**second, "seconds": None}
    for expected, record in zip(cpu["metrics"], first["metrics"], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-2)


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "bf16", "compile": True}])
def test_faster_runs_train(tmp_path, changes):
    expected, result = _trained(tmp_path / "plain", "cuda"), _trained(tmp_path / "fast", "cuda", **changes)
    assert result["metrics"][-1]["loss"] == pytest.approx(expected["metrics"][-1]["loss"], rel=0.1)


def test_no_step_waits_for_the_gpu(tmp_path):
    """With synchronising calls forbidden but where losses are read, at the end of the run."""
    from shiftproof.training.build import build_steps
    from shiftproof.training.inputs import Inputs

    device, spec = torch.device("cuda"), dataclasses.replace(spec_of("vrex", "adam"), device="cuda")
    steps = build_steps(spec, DIGITS, device, None)
    inputs = Inputs(DIGITS, spec, steps.algorithm.network.normalisation, device)
    steps.take(inputs.batches(1), 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.take(inputs.batches(2), 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
