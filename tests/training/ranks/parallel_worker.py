"""Train on two gloo processes what is trained on one too; what the two give is compared by the tests.

A program of its own, `python parallel_worker.py PART FOLDER`.
"""

import contextlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from shiftproof.algorithms import ALGORITHMS
from shiftproof.data import DATASETS
from shiftproof.optim.registry import OPTIMIZERS
from shiftproof.training import RunSpec, run, train
from shiftproof.training.build import build_steps
from shiftproof.training.callbacks import checkpoints
from shiftproof.training.inputs import Inputs
from shiftproof.training.ranks.launch import launch
from shiftproof.training.ranks.split import ALONE, full_state

STEPS = 3
TARGETS = ("0", "45", "75")  # three domains to train on
PARALLEL = [
    name
    for name, algorithm in ((name, ALGORITHMS[name]) for name in ALGORITHMS)
    if algorithm.single_device is None and not algorithm.needs_class_vectors
]
SHARDABLE = [name for name in PARALLEL if not ALGORITHMS[name].reads_heads]
PLAIN = [name for name in OPTIMIZERS if not OPTIMIZERS[name].needs_graph]


def spec_of(algorithm="erm", optimizer="sgd", **changes):
    digits = DATASETS["rotated_digits"].open(None, None)
    entry = OPTIMIZERS[optimizer]
    hparams = {f"optimizer.{name}": hparam.default for name, hparam in entry.hparams.items()}
    hparams |= {f"algorithm.{name}": hparam.default for name, hparam in ALGORITHMS[algorithm].hparams.items()}
    for name, hparam in ALGORITHMS[algorithm].short_hparams.items():
        hparams[f"algorithm.{name}"] = 1 if name.endswith("anneal_steps") else hparam.default  # so that it is reached
    # small weights, so that no penalty makes the steps chaotic
    weight = "algorithm.penalty_weight"
    penalty = {weight: min(0.5, hparams[weight])} if weight in hparams else {}
    facts = {
        "dataset": digits.name,
        "data_fingerprint": digits.fingerprint,
        "algorithm": algorithm,
        "optimizer": optimizer,
        "annealer": "none",
        "targets": TARGETS,
        "trial_seed": 0,
        "hparam_seed": 0,
        "hparams": {**hparams, **penalty, "optimizer.lr": 0.01, "data.batch_size": 8, "model.dropout": 0.2},
        "steps": 12,
        "checkpoint_freq": 4,
        "model": "small_conv",
    }
    return RunSpec(**{**facts, **changes})


def algorithm_cases():
    found = {f"ddp, {name}": ("ddp", spec_of(name)) for name in PARALLEL}
    return found | {f"fsdp, {name}": ("fsdp", spec_of(name)) for name in SHARDABLE}


def option_cases():
    found = {}
    for strategy in ("ddp", "fsdp"):
        # trial 1: in trial 0 a difference by rounding crosses a kink that GAM's third step looks for
        found |= {f"{strategy}, {name}": (strategy, spec_of("erm", name, trial_seed=1)) for name in PLAIN}
        found[f"{strategy}, accumulated"] = (strategy, spec_of(accumulate=4))
        found[f"{strategy}, clipped"] = (strategy, spec_of(clip_norm=0.1))
        found[f"{strategy}, bf16"] = (strategy, spec_of(precision="bf16"))
        fine_tuned = spec_of(layer_decay=0.5, l2_sp=0.5, schedule="cosine", warm_up=2)
        found[f"{strategy}, fine-tuned"] = (strategy, fine_tuned)
        found[f"{strategy}, compiled"] = (strategy, spec_of(compile=True))
    for name in PARALLEL:
        if ALGORITHMS[name].min_domains == 1 and not ALGORITHMS[name].mixes_images:
            found[f"ddp, {name}, one source"] = ("ddp", spec_of(name, targets=("0", "15", "30", "45", "60")))
    return found


def steps_of(spec, ranks):
    """Return the losses of some steps, and the state and the loss of a prediction then."""
    digits, device = DATASETS["rotated_digits"].open(None, None), torch.device("cpu")
    steps = build_steps(spec, digits, device, None, ranks)
    inputs = Inputs(digits, spec, steps.algorithm.network.normalisation, device, ranks)
    losses = [float(steps.take(inputs.batches(step), step)) for step in range(1, STEPS + 1)]
    images, _ = inputs.sample(0, "out", 7)  # of which two processes get no equal parts
    with torch.no_grad():
        logits = steps.algorithm.eval().predict(images)
    return losses, logits, full_state(steps.algorithm)


def compare(folder, cases, ranks, device):
    run.reproducible().__enter__()
    differences = {}
    for name, (strategy, spec) in cases.items():
        losses, logits, state = steps_of(spec, ranks._replace(strategy=strategy))
        expected_losses, expected_logits, expected = steps_of(spec, ALONE)
        assert state.keys() == expected.keys()
        moved = torch.cat([(state[k] - expected[k]).flatten().double() for k in expected])
        start = full_state(build_steps(spec, DATASETS["rotated_digits"].open(None, None), device, None).algorithm)
        path = torch.cat([(expected[k] - start[k]).flatten().double() for k in expected])
        differences[name] = {
            # large losses, as of IB-IRM's penalties, are rounded at their own size
            "losses": max(abs(a - b) / max(1, abs(b)) for a, b in zip(losses, expected_losses, strict=True)),
            "logits": float((logits - expected_logits).abs().max()),
            "state": float(moved.norm() / path.norm()),  # of the way from the start
        }
    if ranks.first:
        (folder / "differences.json").write_text(json.dumps(differences))


class Killed(Exception):
    pass


def train_part(folder, spec, stop, ranks, device):
    """Train a run up to a step, or to its end."""

    def kill(step, loss):
        if step == stop:
            raise Killed

    checkpoints.CHECKPOINT_SECONDS = 0
    data = DATASETS["rotated_digits"].open(None, None)
    with contextlib.suppress(Killed):
        train(spec, data, folder, device=device, on_progress=kill, ranks=ranks)


def begin_runs(folder, spec, ranks, device):
    """Train one run to its end, and one in part."""
    train_part(folder / "two", spec, None, ranks, device)
    train_part(folder / "parts", spec, 5, ranks, device)


def continue_runs(folder, spec, ranks, device):
    """Continue to the end what was begun so, and in part what was begun with another strategy."""
    train_part(folder / "continued", spec, None, ranks, device)
    train_part(folder / "parts", spec, 9, ranks._replace(strategy="fsdp"), device)


def train_runs(folder):
    """Train one run on 1; on 2, also in two parts; and in parts on 2 (DDP), 2 (FSDP2) and 1."""
    spec = spec_of("vrex", "adam", averaging="ema", layer_decay=0.5, l2_sp=0.5, schedule="cosine")
    train_part(folder / "one", spec, None, ALONE, torch.device("cpu"))
    parts = folder / "parts"
    launch(partial(begin_runs, folder, spec), "cpu", 2, "ddp")
    shutil.copy(parts / "checkpoint.pt", folder / "ddp.pt")
    shutil.copytree(parts, folder / "continued")
    launch(partial(continue_runs, folder, spec), "cpu", 2, "ddp")
    shutil.copy(parts / "checkpoint.pt", folder / "fsdp.pt")
    train_part(parts, spec, None, ALONE, torch.device("cpu"))


if __name__ == "__main__":
    part, folder = sys.argv[1], Path(sys.argv[2])
    if part == "runs":
        train_runs(folder)
    else:
        launch(
            partial(compare, folder, {"algorithms": algorithm_cases, "options": option_cases}[part]()), "cpu", 2, "ddp"
        )
