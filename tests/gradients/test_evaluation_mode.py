"""Evaluation mode for the time of a measurement."""

import pytest
from torch import nn

from shiftproof.gradients.modes import evaluation_mode


class _Merging(nn.Linear):
    """Does more than change its mode where it is put into another, as layers with merged adapters do."""

    def train(self, mode=True):
        self.weight.data.mul_(2)
        return super().train(mode)


def test_modes_are_changed_and_restored_and_nothing_else_is():
    model = nn.Sequential(_Merging(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[2].training = False
    modes, weight = [module.training for module in model.modules()], model[0].weight.detach().clone()

    def fails():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in model.modules()] == modes
    assert model[0].weight.equal(weight)
