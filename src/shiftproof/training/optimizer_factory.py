"""The factory that gives an algorithm its optimizers, so that the algorithm need not know which they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from shiftproof.base.hparams import Value
from shiftproof.base.randomness import torch_seed
from shiftproof.optim import OPTIMIZERS


@dataclass(frozen=True)
class RunOptimizers:
    """The `OptimizerFactory` of a run.

    Attributes:
        optimizer: name of the optimizer.
        seed: the run's seed.
        hparams: hyperparameters of the optimizer, by name.
        ratios: ratio of the learning rate of some parameters to that of the optimizer that they are in. Parameters of
            one ratio are one group; groups are in the order of their first parameters.
        names: names of all parameters, for optimizers whose rule may depend on them; empty for none.
    """

    optimizer: str
    seed: int
    hparams: Mapping[str, Value] = field(default_factory=dict)
    ratios: Mapping[nn.Parameter, float] = field(default_factory=dict)
    names: Mapping[nn.Parameter, str] = field(default_factory=dict)

    def __call__(
        self,
        params: Iterable[nn.Parameter],
        *,
        name: str = "all",
        lr_ratio: float = 1.0,
        weight_decay: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
    ) -> Optimizer:
        """Return a new optimizer over the parameters.

        Args:
            params: the parameters.
            name: determines its random numbers together with the run's seed; "all" uses the run's seed itself.
            lr_ratio: ratio of its learning rate to the run's, above 0.
            weight_decay: its weight decay; None for the run's.
            beta1: decay of the first moment, in [0, 1), for optimizers with Adam's ``betas``; None for their default.
                Others ignore it.
            beta2: decay of the second moment, likewise.

        Raises:
            ValueError: an argument or a hyperparameter is out of range.
        """
        if lr_ratio <= 0:
            raise ValueError(f"Invalid lr_ratio value: {lr_ratio}; it must be above 0")
        for option, beta in (("beta1", beta1), ("beta2", beta2)):
            if beta is not None and not 0 <= beta < 1:
                raise ValueError(f"Invalid {option} value: {beta}; it must be in [0, 1)")
        hparams = dict(self.hparams)
        if lr_ratio != 1:
            hparams["lr"] = float(hparams["lr"]) * lr_ratio
        if weight_decay is not None:
            hparams["weight_decay"] = weight_decay
        seed = self.seed if name == "all" else torch_seed(self.seed, "optimizer", name)
        groups = self._groups(params, float(hparams["lr"])) if self.ratios else params
        entry = OPTIMIZERS[self.optimizer]
        optimizer = entry(groups, seed=seed, **hparams)
        for group in optimizer.param_groups:
            if entry.named and all(p in self.names for p in group["params"]):
                group["param_names"] = [self.names[p] for p in group["params"]]  # where torch has them
            if "betas" in group:
                first, second = group["betas"]
                group["betas"] = (first if beta1 is None else beta1, second if beta2 is None else beta2)
        return optimizer

    def _groups(self, params: Iterable[nn.Parameter], lr: float) -> list[dict[str, Any]]:
        members: dict[float, list[nn.Parameter]] = {}
        for p in params:
            members.setdefault(self.ratios.get(p, 1.0), []).append(p)
        return [{"params": own, "lr": lr * ratio} for ratio, own in members.items()]
