"""Averages that are up to date after every update, and are scored in place of the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from torch import Tensor

from shiftproof.training.averaging.state import blend, copy_state, to_device_of

EMA_DECAY = 0.999
SMA_START = 100 / 5000
"""The first update that the simple moving average counts, as a share of the steps; published is 100 of 5,000."""
BMA_BETA = 0.5


class MovingAverage:
    """Base class of averages that are up to date after every update.

    Args:
        start: the weights before the first update.

    Attributes:
        average: the average.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.average = copy_state(start)

    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Add the weights after update number ``step`` (from 1) to the average."""
        blend(self.average, state, self.share(step))

    def share(self, step: int) -> float:
        """Return the share of the weights after update number ``step`` in the average that includes them."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return its state as tensors and plain Python values."""
        return {"average": self.average}

    def load_state_dict(self, content: dict[str, Any], like: Mapping[str, Tensor]) -> None:
        """Restore the state that `state_dict` returned, on the device of ``like``."""
        self.average = to_device_of(like, content["average"])


class EMA(MovingAverage):
    """Exponential moving average of the weights.

    After update number t (from 1) the average keeps min(0.999, (1 + t) / (10 + t)) of itself, as in TensorFlow's
    ``ExponentialMovingAverage``: the initial weights are forgotten soon, and the decay is constant from t = 8,990.

    Args:
        start: the weights before the first update.
    """

    def share(self, step: int) -> float:
        """Return 1 - min(0.999, (1 + t) / (10 + t))."""
        return 1 - min(EMA_DECAY, (1 + step) / (10 + step))


class SMA(MovingAverage):
    r"""Simple moving average of the weights: the mean after every update from one on, and before it the weights.

    After update t it is :math:`\frac{1}{t - t_0 + 1} \sum_{i = t_0}^{t} \theta_i`, and :math:`\theta_t` where
    :math:`t \le t_0`.

    Source: Arpit et al., "Ensemble of Averages: Improving Model Selection and Boosting Performance in Domain
    Generalization", NeurIPS 2022 (arXiv 2110.10832), where t0 is 100 of 5,000 steps.

    Args:
        start: the weights before the first update.
        steps: number of updates of the run, of which t0 is the share `SMA_START`, rounded, and at least 1.
    """

    def __init__(self, start: Mapping[str, Tensor], steps: int) -> None:
        super().__init__(start)
        self._first = max(1, round(SMA_START * steps))

    def share(self, step: int) -> float:
        """Return 1 / (t - t0 + 1), and 1 before t0."""
        return 1 / max(1, step - self._first + 1)


class BMA(MovingAverage):
    r"""Beta moving average of the weights, in which the first and the last weights of a run count most.

    After update t it is :math:`\sum_{i=0}^{t} \alpha_i \theta_i / \sum_{i=0}^{t} \alpha_i`, where :math:`\theta_0`
    are the weights before the first of T updates, and :math:`\alpha_i` is the density of the distribution
    :math:`\operatorname{Beta}(\beta, \beta)` at :math:`(i + 0.5) / (T + 1)`, with :math:`\beta = 0.5`.

    Source: Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023 (arXiv 2302.00864), and the
    authors' code (commit 538dd3b).

    Args:
        start: the weights before the first update.
        steps: number T of updates of the run.
    """

    def __init__(self, start: Mapping[str, Tensor], steps: int) -> None:
        super().__init__(start)
        places = [(i + 0.5) / (steps + 1) for i in range(steps + 1)]
        weights: list[float] = [(x * (1 - x)) ** (BMA_BETA - 1) for x in places]  # the density up to a factor
        self._shares = [weight / total for weight, total in zip(weights, accumulate(weights), strict=True)]

    def share(self, step: int) -> float:
        """Return the weight of the latest weights over the sum of all so far."""
        return self._shares[step]
