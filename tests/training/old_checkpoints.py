"""The runs of the folder `old_checkpoints`, of a network small enough for their checkpoints to be kept.

The folder holds what commit 6583c37 wrote, the last before training was a loop with callbacks: of each run the
checkpoint when it was killed at step 9 of 12, and the result and the weights that it reached undisturbed; of a trace of
6 steps the checkpoint when it was killed in step 5, and the trace. That commit's `CHECKPOINT_SECONDS` were 0.
"""

from pathlib import Path

import torch
from torch import nn

from shiftproof.data import DATASETS
from shiftproof.figures.traces import Subject
from shiftproof.models import MODELS
from shiftproof.training import RunSpec

FOLDER = Path(__file__).with_name("old_checkpoints")
DIGITS = DATASETS["rotated_digits"].open(None, None)
HPARAMS = {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.01}
SEARCH = {"annealer.radius": 0.01, "annealer.candidates": 5, "annealer.start": 3, "annealer.end": 11}


def _tiny(shape):
    module = nn.Sequential(nn.Conv2d(shape[0], 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    return MODELS["small_conv"].build(shape)._replace(module=module)


if "tiny" not in MODELS:
    MODELS.register("tiny", MODELS["small_conv"]._replace(build=_tiny))


def _spec(**changes):
    facts = {
        "dataset": DIGITS.name,
        "data_fingerprint": DIGITS.fingerprint,
        "algorithm": "erm",
        "optimizer": "adam",
        "annealer": "none",
        "targets": ("0", "45", "75"),
        "trial_seed": 0,
        "hparam_seed": 0,
        "hparams": HPARAMS,
        "steps": 12,
        "checkpoint_freq": 4,
        "model": "tiny",
    }
    return RunSpec(**{**facts, **changes})


RUNS = {
    "plain": _spec(),
    "ema": _spec(optimizer="genie", averaging="ema"),
    "swad": _spec(optimizer="sam", averaging="swad", checkpoint_freq=2),
    "gga": _spec(annealer="gga", hparams=HPARAMS | SEARCH),
}
TRACED = Subject(_spec(steps=6), DIGITS, torch.device("cpu"), None)
