"""One run on several devices: how they share the work, and how their processes are started."""

from shiftproof.training.ranks.launch import PRELOADED, check_devices, from_torchrun, launch, torchrun_group
from shiftproof.training.ranks.split import (
    ALONE,
    Ranks,
    Strategy,
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    split_over_ranks,
    whole_featurizer,
)

__all__ = [
    "ALONE",
    "PRELOADED",
    "Ranks",
    "Strategy",
    "check_devices",
    "from_torchrun",
    "full_optimizer_state",
    "full_state",
    "launch",
    "load_full_optimizer_state",
    "load_full_state",
    "split_over_ranks",
    "torchrun_group",
    "whole_featurizer",
]
