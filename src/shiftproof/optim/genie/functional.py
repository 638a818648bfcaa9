"""GENIE's functional core: one step on lists of tensors, taken by the fastest implementation that supports them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shiftproof.optim.genie.rule import Form, Options
from shiftproof.optim.genie.step import Flags, make_rows, refuse_sparse, take_step


def genie(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    positions: Sequence[int],
    *,
    lr: float | Tensor,
    beta: float,
    dropout: float,
    noise: float,
    precondition: bool,
    weight_decay: float,
    form: Form,
    seed: int,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Take one GENIE step on lists of tensors, in place (parameters, moving averages and step counts).

    Each process steps its parts of DTensors; the result equals that of one process stepping the whole.

    Args:
        params: parameters.
        grads: their gradients.
        exp_avgs: moving averages of the gradients.
        exp_avg_sqs: moving averages of the squared gradients.
        steps: steps taken so far, scalar tensors; increased by one.
        positions: each parameter's position in the random stream.
        lr: step size; see `GENIE` for details of this and the following options up to ``differentiable``.
        beta: decay of the moving averages.
        dropout: probability of dropping an element's update.
        noise: factor of the noise.
        precondition: whether the mean gradient is preconditioned.
        weight_decay: L2 penalty.
        form: the update rule.
        seed: key of the random stream.
        maximize: whether to ascend.
        foreach: whether to use the foreach implementation.
        fused: whether to use the fused implementation.
        capturable: whether steps are counted on the device and the host reads no value.
        differentiable: whether autograd records the step.
        grad_scale: factor by which `torch.amp.GradScaler` multiplied the gradients, to be divided out. Like
            ``found_inf``, only the fused implementation on a GPU supports it.
        found_inf: nonzero if a gradient is not finite; the step is then skipped.

    Raises:
        RuntimeError: a gradient is sparse; a gradient or moving average differs from its parameter in shape or device;
            ``fused`` is True and the fused implementation does not support a tensor; or a parameter is a DTensor of
            partial sums.
        ValueError: the sequences differ in length.
    """
    options = Options(
        lr=lr,
        betas=(beta, beta),
        eps=0.0,
        dropout=dropout,
        noise=noise,
        precondition=precondition,
        weight_decay=weight_decay,
        form=form,
        seed=seed,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    flags = Flags(foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable)
    _take(params, grads, exp_avgs, exp_avg_sqs, steps, positions, options, flags)


def genie_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    positions: Sequence[int],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    dropout: float,
    seed: int,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Take one step of `GENIEAdamW` on lists of tensors, in place (parameters, moving averages and step counts).

    Each process steps its parts of DTensors; the result equals that of one process stepping the whole.

    Args:
        params: parameters.
        grads: their gradients.
        exp_avgs: moving averages of the gradients.
        exp_avg_sqs: moving averages of the squared gradients.
        steps: steps taken so far, scalar tensors; increased by one.
        positions: each parameter's position in the random stream.
        lr: learning rate; see `GENIEAdamW` for details of this and the following options up to ``differentiable``.
        betas: decay of the two moving averages.
        eps: added to the square root of the second.
        weight_decay: decoupled weight decay.
        dropout: probability of dropping an element's update.
        seed: key of the random stream.
        maximize: whether to ascend.
        foreach: whether to use the foreach implementation.
        fused: whether to use the fused implementation.
        capturable: whether steps are counted on the device and the host reads no value.
        differentiable: whether autograd records the step.
        grad_scale: factor by which `torch.amp.GradScaler` multiplied the gradients, to be divided out. Like
            ``found_inf``, only the fused implementation on a GPU supports it.
        found_inf: nonzero if a gradient is not finite; the step is then skipped.

    Raises:
        RuntimeError: a gradient is sparse; a gradient or moving average differs from its parameter in shape or device;
            ``fused`` is True and the fused implementation does not support a tensor; or a parameter is a DTensor of
            partial sums.
        ValueError: the sequences differ in length.
    """
    options = Options(
        lr=lr,
        betas=betas,
        eps=eps,
        dropout=dropout,
        noise=0.0,
        precondition=True,
        weight_decay=weight_decay,
        form="adamw",
        seed=seed,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    flags = Flags(foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable)
    _take(params, grads, exp_avgs, exp_avg_sqs, steps, positions, options, flags)


def _take(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    positions: Sequence[int],
    options: Options,
    flags: Flags,
) -> None:
    refuse_sparse(grads, "GENIEAdamW" if options.form == "adamw" else "GENIE")
    names = [None] * len(params)
    rows = make_rows(
        params, grads, exp_avgs, exp_avg_sqs, steps, positions, names, capturable=flags.capturable, begins=True
    )
    take_step([(rows, options, flags)], [steps])
