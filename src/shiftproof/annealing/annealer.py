"""The contract of an annealer: what happens around a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from shiftproof.hparams import Hparam
from shiftproof.registry import Registry


class Annealer:
    """Does nothing around a step; subclass it to search before one or to edit its gradients.

    Both hooks must be functions of the parameters and the step: every pass of a multi-pass optimizer calls
    `edit_gradients` again, and all must see one objective.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {}

    def before_step(self, parameters: Sequence[Tensor], step: int, domain_losses: Callable[[], list[Tensor]]) -> None:
        """Move the parameters before step number ``step`` (from 1).

        Args:
            parameters: the parameters that train.
            step: number of the step.
            domain_losses: evaluates the losses of the source domains at the current parameters.
        """

    def edit_gradients(
        self, parameters: Sequence[Tensor], step: int, domain_losses: Callable[[], list[Tensor]]
    ) -> None:
        """Edit the gradients of the parameters in place, after every backward pass of step ``step``."""


ANNEALERS: Registry[type[Annealer]] = Registry("annealer")
ANNEALERS.register("none", Annealer)
