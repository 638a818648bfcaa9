"""GENIEAdamW: GENIE's preconditioner in Adam's units, with AdamW's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from shiftproof.base.options import check_number
from shiftproof.optim.genie.base import GENIEBase, check_shared_options
from shiftproof.optim.genie.rule import Options
from shiftproof.optim.genie.seeds import free_seed


class GENIEAdamW(GENIEBase):
    r"""AdamW whose update is scaled, element by element, by how far the gradients of late agree.

    With Adam's bias-corrected moments :math:`\hat m` and :math:`\hat v`, and the variance :math:`\rho` of the average
    over that of one gradient (Balles and Hennig, ICML 2018, equation 10),

    .. math::
        c = 1 - \beta_1^t,\quad \rho = \frac{(1 - \beta_1)(2 - c)}{(1 + \beta_1)\, c},\quad
        f = \frac{\hat m^2}{\hat m^2 + \rho \max(\hat v - \hat m^2, 0)},

    .. math::
        u = f\, \frac{\hat m}{\sqrt{\hat v} + \epsilon},\quad
        \theta \leftarrow \theta - \eta\,(u\,M + \lambda\,\theta)

    with :math:`f = 0` where :math:`\hat v = 0`. The factor has the shape of the preconditioner that GENIE's authors
    released (`GENIE`, ``form="released"``) without its tanh, its constants and its noise. It is 1 on the first step and
    wherever :math:`\hat m^2 \ge \hat v`; the step is AdamW's there. Where gradients only vary about zero it goes to 0.
    An element of :math:`M` is 0 with probability ``dropout``, else 1 / (1 - ``dropout``); weight decay is not masked.

    It tunes like Adam, and does not transfer better. Measured with prototypes of it and of Adam: its best learning rate
    was Adam's on five of five problems; none of its runs at 0.001 to 0.03 diverged, nor on an MLP at 0.1; at three
    times the best rate it lost 0.2 points of source validation, Adam 1.0; the accuracy on unseen domains differed from
    Adam's by +0.1 points [-1.2, +1.4] (rotated digits, 36 runs). See docs/explanation/genie.md.

    The scale of the loss makes no difference: with ``eps=0``, a loss times a power of two leaves every weight bit for
    bit the same, unless :math:`(1 - \beta_2) g^2` or :math:`\hat m^2` leaves the range of normal numbers (in float32,
    gradients of at least 1e-10 times a factor between 2^-14 and 2^14 stay in it), or gradients are clipped. A float32
    gradient above 1.8e19 has no square, and makes its weight NaN.

    The mask is a function of (seed, step, position of the parameter, element), as in `GENIE`: replicas and shards draw
    what one process would, and torch's generators are not touched.

    Args:
        params: parameters, named parameters or groups, as every torch optimizer takes them.
        lr: learning rate; Adam's fits.
        betas: decay of the moving averages of the gradient and of its square, in [0, 1).
        eps: added to the root of the second average.
        weight_decay: decoupled weight decay: weights shrink by ``lr * weight_decay`` a step.
        dropout: probability of dropping an element's update, in [0, 1), rounded to a multiple of 1/65536; 0 draws no
            mask.
        maximize: ascend instead of descending.
        foreach: whether to use the foreach implementation; None leaves the choice to this class.
        fused: whether to use the fused implementation: a compiled kernel on the CPU, Triton on a GPU. None uses it if
            possible (``repr`` says why if not), otherwise foreach, or the for-loop for tensor subclasses. The CPU
            kernel is compiled once per machine, at the first step, unless it came with the package.
        capturable: count steps on the device and read no value on the host, as capture in a CUDA graph requires.
        differentiable: let autograd record the step; for-loop only.
        seed: key of the mask's random stream, in [0, 2**64); it must be equal on all replicas. None takes the lowest
            number that no other living GENIE or GENIEAdamW of this process has; see `GENIE`.
        moment_dtype: dtype of both moving averages, or its name; None is float32, or the parameter's dtype if that is
            wider. ``torch.bfloat16`` halves the state, and rounds stochastically so that averages do not lose small
            changes.

    Raises:
        ValueError: an option is out of its range, or two contradict each other.
        RuntimeError: ``fused`` comes with ``foreach`` or ``differentiable``.

    Warns:
        UserWarning: FSDP1 or ZeroRedundancyOptimizer shards the parameters, so masks repeat across parts.

    Examples:
        >>> import torch
        >>> from shiftproof.optim import GENIEAdamW
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = GENIEAdamW([weight], lr=0.1)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.detach().square().sum() < 5.0)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        dropout: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        seed: int | None = None,
        moment_dtype: torch.dtype | str | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "dropout": dropout,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
            "seed": free_seed() if seed is None else seed,
            "moment_dtype": moment_dtype,
        }
        super().__init__(params, options)

    def _check(self, options: Mapping[str, Any]) -> None:
        """Refuse what AdamW refuses, in its words, and what it does not have."""
        lr, betas = options["lr"], options["betas"]
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, options[name])
        if isinstance(lr, Tensor):
            if options["foreach"] and not options["capturable"]:
                raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
            if lr.numel() != 1:
                raise ValueError("Tensor lr must be 1-element")
        if not 0 <= lr < math.inf:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0 <= options["eps"] < math.inf:
            raise ValueError(f"Invalid epsilon value: {options['eps']}")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"Invalid betas value: {betas}; it must be two numbers")
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta)
            if isinstance(beta, Tensor):
                raise ValueError(f"betas[{i}] as a Tensor is not supported")  # noqa: TRY004
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not 0 <= options["weight_decay"] < math.inf:
            raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")
        if options["fused"] and options["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if options["fused"] and options["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        check_shared_options(options)

    def _check_saved(self, group: Mapping[str, Any]) -> None:
        if "form" in group:  # moments with one decay for both, on another scale of time
            raise ValueError("the state is of a GENIE optimizer, which GENIEAdamW cannot continue")
        if group.get("amsgrad"):
            raise ValueError("the state is of an Adam with amsgrad, which GENIEAdamW does not have")
        if group.get("weight_decay") and group.get("decoupled_weight_decay") is False:
            raise ValueError("the state is of an Adam with an L2 penalty; GENIEAdamW's weight decay is decoupled")

    def _step_options(self, group: Mapping[str, Any]) -> Options:
        return Options(
            lr=group["lr"],
            betas=(group["betas"][0], group["betas"][1]),
            eps=group["eps"],
            dropout=group["dropout"],
            noise=0.0,
            precondition=True,
            weight_decay=group["weight_decay"],
            form="adamw",
            seed=group["seed"],
            maximize=group["maximize"],
        )
