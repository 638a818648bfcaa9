"""L2-SP, a penalty on the distance of the weights from where training started."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class StartPenalty:
    r"""L2-SP (Li, Grandvalet and Davoine, ICML 2018, arXiv 1802.01483): keeps weights near those of the start.

    To the loss it adds

    .. math:: \frac{C}{2} \lVert w - w^0 \rVert^2

    over the parameters that train, by its gradient :math:`C\,(w - w^0)`. The start :math:`w^0` is what the parameters
    are when this is made.

    The paper has a second term, :math:`\frac{\beta}{2} \lVert w \rVert^2` over the new classifier's weights, which is
    what an optimizer's weight decay is for. The authors' code has a form for all parameters, which this is, and one
    that leaves out biases and the scales and shifts of normalisations.

    Args:
        strength: the factor :math:`C`, above 0.
        parameters: the parameters; those that do not train are left out.
    """

    def __init__(self, strength: float, parameters: Iterable[Tensor]) -> None:
        self.strength = strength
        self._starts = [(p, p.detach().clone()) for p in parameters if p.requires_grad]

    def add_gradients(self, create_graph: bool) -> None:
        """Add the penalty's gradients to those of the parameters.

        Args:
            create_graph: whether they can be differentiated again.
        """
        for p, start in self._starts:
            distance = (p if create_graph else p.detach()) - start
            # not in place: an algorithm may have left a view, and a second-order optimizer differentiates the gradient
            p.grad = distance * self.strength if p.grad is None else torch.add(p.grad, distance, alpha=self.strength)
