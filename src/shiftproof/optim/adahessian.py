"""AdaHessian: Adam with the Hessian's diagonal in place of the gradient in the second moment."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import ParamsT

from shiftproof.optim.moments import (
    MomentOptimizer,
    ParameterBatch,
    average,
    average_squares,
    begin_step,
    decay,
    descend,
)
from shiftproof.optim.stream import Place, draw_signs

_MISSING_GRAPH = """AdaHessian differentiates the gradients again, but they have no graph; write
    loss.backward(create_graph=True)"""

_CYCLE_WARNING = r"Using backward\(\) with create_graph=True will create a reference cycle"


class AdaHessian(MomentOptimizer):
    r"""AdaHessian (Yao et al., "ADAHESSIAN", AAAI 2021, arXiv 2006.00719, algorithm 1, Hessian power 1).

    .. math::
        D_t &= z_t \odot (H_t z_t), \qquad z_t \in \{-1, 1\}^d \text{ at random} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) D_t^{(s)} D_t^{(s)} \\
        \theta_t &= \theta_{t-1} - \eta\, (\hat m_t / (\sqrt{\hat v_t} + \epsilon) + \lambda \theta_{t-1})

    with Adam's bias correction (:math:`\hat m_t`, :math:`\hat v_t`), decoupled weight decay :math:`\lambda` and the
    spatial averaging :math:`D^{(s)}`: the mean of :math:`\lvert D \rvert` over each convolution kernel (all dimensions
    beyond the second). Matrices and vectors are not averaged. Averaging magnitudes, block size 1 for matrices and the
    defaults follow the code of the authors' experiments on images.

    The gradients must have a graph: ``loss.backward(create_graph=True)``. The closure is called once, but the
    Hessian-vector product costs about as much as a second backward pass, which a count of closure calls does not show.
    The step frees the graph. If the model uses fused attention, back-propagate in a closure: the fused kernels have no
    second derivative, so `step` switches them off around it. :math:`z` is a function of (seed, step, parameter,
    element); torch's generators are neither read nor moved. Edits of gradients that autograd does not record, such as
    clipping, change only :math:`m`. AdaHessian works in one process only, because only local gradients have a graph.

    It is implemented here because torch has no AdaHessian, and timm's averages kernels only on request and draws from a
    generator that its state does not contain.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the denominator.
        weight_decay: strength of the decoupled weight decay.
        seed: key of the random signs.

    Raises:
        ValueError: an option is out of range.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import AdaHessian
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdaHessian([weight], lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward(create_graph=True)  # it reads second derivatives
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, seed=seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: evaluates the model, back-propagates with ``create_graph=True`` and returns the loss.

        Returns:
            The closure's result.

        Raises:
            RuntimeError: the gradients have no graph.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad(), _for_second_derivatives():
                loss = closure()
        self._check_graph()
        batches = begin_step(self)
        diagonals = iter(_hessian_diagonal(batches))
        for batch in batches:
            beta1, beta2 = batch.group["betas"]
            average(batch.exp_avgs, batch.grads, beta1)
            average_squares(batch.exp_avg_sqs, [_averaged(next(diagonals)) for _ in batch.params], beta2)
            decay(batch)
            descend(batch)
            for p in batch.params:  # free the graph: parameter, gradient and graph refer to one another in a cycle
                p.grad = p.grad.detach()  # type: ignore[union-attr]
        return loss

    def _check_graph(self) -> None:
        """Raise RuntimeError if no gradient has a graph, unless all gradients are 0."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not any(grad.requires_grad for grad in grads) and any(grad.any() for grad in grads):
            raise RuntimeError(_MISSING_GRAPH)


@contextmanager
def _for_second_derivatives() -> Iterator[None]:
    """Switch off fused attention, which has no second derivative, and silence the warning about kept graphs."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", _CYCLE_WARNING)  # the step breaks the cycle
        yield


def _hessian_diagonal(batches: Sequence[ParameterBatch]) -> list[Tensor]:
    """Estimate the magnitude of the Hessian's diagonal, for all parameters in the order of the batches."""
    params = [p for batch in batches for p in batch.params]
    grads = [grad for batch in batches for grad in batch.grads]
    signs = [z for batch in batches for z in _signs(batch)]
    differentiable = [i for i, grad in enumerate(grads) if grad.requires_grad]
    if not differentiable:
        return [torch.zeros_like(p) for p in params]
    products = torch.autograd.grad(
        [grads[i] for i in differentiable], params, [signs[i] for i in differentiable], materialize_grads=True
    )
    return [product.abs() for product in products]  # |z * Hz|, because |z| is 1


def _signs(batch: ParameterBatch) -> list[Tensor]:
    places = [Place(p.shape, position) for p, position in zip(batch.params, batch.positions, strict=True)]
    p = batch.params[0]
    return draw_signs(places, batch.group["seed"], batch.step, p.dtype, p.device)


def _averaged(diagonal: Tensor) -> Tensor:
    """Average over each kernel of a convolution; leave other shapes alone."""
    if diagonal.dim() <= 2:
        return diagonal
    return diagonal.mean(dim=tuple(range(2, diagonal.dim())), keepdim=True).expand_as(diagonal)
