"""A run that is killed between two steps."""

import pytest
import torch

from shiftproof.training import train


class Killed(Exception):
    pass


def train_killed_at(step, spec, data, folder, **options):
    def kill(now, loss):
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        train(spec, data, folder, device=torch.device("cpu"), on_progress=kill, **options)
