"""The optimizers by name: how to build each, its defaults and its search distributions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from shiftproof.base.choices import Search
from shiftproof.base.hparams import (
    Distribution,
    Hparam,
    check_hparams,
    choice,
    decades,
    is_finite,
    log10_uniform,
    option,
    uniform,
)
from shiftproof.base.registry import Registry
from shiftproof.optim.adabelief import AdaBelief
from shiftproof.optim.adahessian import AdaHessian
from shiftproof.optim.fad import FAD
from shiftproof.optim.gam import GAM
from shiftproof.optim.genie import GENIE, GENIEAdamW
from shiftproof.optim.gsam import GSAM
from shiftproof.optim.msvag import MSVAG
from shiftproof.optim.sagm import SAGM
from shiftproof.optim.sam import ASAM, SAM
from shiftproof.optim.signum import Signum
from shiftproof.optim.yogi import Yogi


@dataclass(frozen=True)
class LearningRates:
    """The default and search distribution of a learning rate, for a random start or for given weights.

    Attributes:
        protocol: default and distribution at the protocol's length (5,001 steps).
        short: default for a few hundred steps; the search covers the two decades around it. It was fixed beforehand
            using source-domain validation only (docs/explanation/short_search.md).
        short_part: as ``short``, where only a part of the network is trained; None if that is the same.

    Raises:
        ValueError: a default is not above 0, or the protocol's has no distribution.
    """

    protocol: tuple[float, Distribution]
    short: float
    short_part: float | None = None

    def __post_init__(self) -> None:
        try:
            default, distribution = self.protocol
            Hparam(default, distribution)
        except (TypeError, ValueError):
            raise ValueError(
                "protocol of LearningRates must be a default and a distribution, as in (1e-3, log10_uniform(-4, -2)), "
                f"not {self.protocol!r}"
            ) from None
        for rate in (default, self.short, self.short if self.short_part is None else self.short_part):
            if not _is_number(rate) or not rate > 0:
                raise ValueError(f"a learning rate must be a finite number above 0, not {rate!r}")

    def hparam(self, search: Search, part: bool = False) -> Hparam:
        """Return the learning rate as a hyperparameter of a search, for all of a network or for a part of it."""
        if search == "short":
            default = self.short_part if part and self.short_part is not None else self.short
            return Hparam(default, decades(default))
        return Hparam(*self.protocol)


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer of the registry.

    Attributes:
        build: called with parameters and the hyperparameters as keywords; usually the class.
        lr_scratch: learning rates from a random start, as in DomainBed for small images.
        lr_pretrained: learning rates from given weights, as in DomainBed for photographs.
        hparams: hyperparameters other than lr and weight decay.
        passes: how often `step` calls its closure.
        needs_graph: whether the closure must call ``backward`` with ``create_graph=True``.
        seeded: whether `build` takes a ``seed``.
        short_hparams: what the short search has in place of `hparams`; empty for the same.
        named: whether its rule may depend on the parameters' names, which runs then give its groups.

    Raises:
        ValueError: a field is not as described here.
    """

    build: Callable[..., Optimizer]
    lr_scratch: LearningRates
    lr_pretrained: LearningRates
    hparams: Mapping[str, Hparam] = field(default_factory=dict)
    passes: int = 1
    needs_graph: bool = False
    seeded: bool = False
    short_hparams: Mapping[str, Hparam] = field(default_factory=dict)
    named: bool = False

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise ValueError(  # noqa: TRY004
                f"build of OptimizerEntry must be an optimizer's class or a function, not {self.build!r}"
            )
        for name in ("lr_scratch", "lr_pretrained"):
            if not isinstance(rates := getattr(self, name), LearningRates):
                raise ValueError(  # noqa: TRY004
                    f"{name} of OptimizerEntry must be LearningRates, as in "
                    f"LearningRates(protocol=(1e-3, log10_uniform(-4, -2)), short=0.01), not {rates!r}"
                )
        check_hparams("hparams of OptimizerEntry", self.hparams)
        check_hparams("short_hparams of OptimizerEntry", self.short_hparams)
        if type(self.passes) is not int or self.passes < 1:
            raise ValueError(f"passes of OptimizerEntry must be a whole number above 0, not {self.passes!r}")

    @property
    def documented(self) -> object:
        """What its docstring describes, for `Registry.summary`."""
        return self.build

    def search_space(
        self, pretrained: bool, search: Search, fixed: Collection[str] = (), part: bool = False
    ) -> dict[str, Hparam]:
        """Return all hyperparameters of a search, which depend on whether training starts from pretrained weights.

        Args:
            pretrained: whether it does.
            search: name of the search.
            fixed: names of hyperparameters that are fixed by hand. One that only the other search has takes the place
                of those that only this one has, unless they are fixed too.
            part: whether only a part of the network is trained.
        """
        lr = self.lr_pretrained if pretrained else self.lr_scratch
        decay = Hparam(0.0, log10_uniform(-6, -2) if pretrained else None)
        own, other = self.hparams, self.short_hparams or self.hparams
        if search == "short":
            own, other = other, own
        if foreign := (other.keys() - own.keys()).intersection(fixed):
            kept = foreign | (own.keys() & {*other, *fixed})
            own = {name: hparam for name, hparam in {**other, **own}.items() if name in kept}
        return {"lr": lr.hparam(search, part), "weight_decay": decay, **own}

    def __call__(self, params: Any, *, seed: int = 0, **hparams: Any) -> Optimizer:
        """Build the optimizer.

        Args:
            params: parameters or groups.
            seed: key of the optimizer's own random numbers; ignored if it draws none.
            **hparams: hyperparameters by name.

        Raises:
            ValueError: a hyperparameter is out of range.
        """
        return self.build(params, **hparams, **({"seed": seed} if self.seeded else {}))


OPTIMIZERS: Registry[OptimizerEntry] = Registry(
    "optimizer",
    instances_of=OptimizerEntry,
    removed={
        "genie_invariant": "it cost three times AdamW and was no easier to tune. Use genie_adamw, which does not "
        "depend on the scale of the loss either, or genie and genie_released to reproduce the paper"
    },
)
"""All optimizers by name: `OPTIMIZERS.register(name, entry)` adds one."""

NO_OPTIMIZER = "none"
"""In the place of an optimizer's name, of algorithms that none trains."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and is_finite(value)


_SCRATCH = (1e-3, log10_uniform(-4.5, -2.5))
_PRETRAINED = (5e-5, log10_uniform(-5, -3.5))
_RHO = Hparam(0.05, choice(0.01, 0.02, 0.05, 0.1))
# Like the short learning rates, fixed beforehand by source-domain validation (docs/explanation/short_search.md).
_RELATIVE_RHO = Hparam(0.003, choice(0.001, 0.003, 0.01))
_GENIE_HPARAMS = {
    "beta": Hparam(0.95, uniform(0.9, 0.999)),
    "dropout": Hparam(0.4, uniform(0.1, 0.8)),
    "noise": Hparam(1.0),
    "precondition": Hparam(True),
    "moment_dtype": Hparam("float32"),
}


def _register(
    name: str,
    build: Callable[..., Optimizer],
    short: tuple[float, float, float],
    protocol: tuple[float, Distribution] | None = None,
    *,
    summary: str = "",
    **entry: Any,
) -> None:
    """Register an optimizer; ``short`` is (random start, given weights, a part of them), ``protocol`` is for all."""
    scratch, pretrained, part = short
    OPTIMIZERS.register(
        name,
        OptimizerEntry(
            build,
            LearningRates(protocol or _SCRATCH, scratch),
            LearningRates(protocol or _PRETRAINED, pretrained, part),
            **entry,
        ),
        summary=summary,
    )


def _with_radius(**others: Hparam) -> dict[str, Any]:
    """Return the hyperparameters of SAM or of its kin: the radius as published or in short searches, and others."""
    return {"hparams": {"rho": _RHO, **others}, "short_hparams": {"relative_rho": _RELATIVE_RHO, **others}}


_register(
    "sgd",
    SGD,
    (0.1, 3e-4, 1e-3),
    (10**-2.75, log10_uniform(-4, -1.5)),
    summary="Stochastic gradient descent with momentum, torch's.",
    hparams={"momentum": Hparam(0.9)},
)
_register("adam", Adam, (0.01, 1e-4, 3e-4), summary="Adam (Kingma and Ba, ICLR 2015), torch's.")
_register(
    "adamw",
    AdamW,
    (0.01, 1e-4, 3e-4),
    summary="Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), torch's.",
)
_register("yogi", Yogi, (0.01, 1e-4, 3e-4))
_register("adabelief", AdaBelief, (0.01, 1e-4, 3e-4))
OPTIMIZERS.register(
    "adahessian",
    OptimizerEntry(
        AdaHessian,
        # Only 0.15 and 0.015 were tuned. The protocol's are Adam's times 15, the ratio of the two on small images.
        LearningRates((0.015, log10_uniform(-3.3, -1.3)), 0.15),
        LearningRates((7.5e-4, log10_uniform(-3.8, -2.3)), 0.015),
        needs_graph=True,
        seeded=True,
    ),
)
_register("sam", SAM, (0.01, 1e-4, 3e-4), passes=SAM.passes, **_with_radius())
_register(
    "asam",
    ASAM,
    (0.01, 1e-4, 3e-4),
    passes=ASAM.passes,
    named=True,
    hparams={"rho": Hparam(0.5, choice(0.1, 0.2, 0.5, 1.0)), "by_name": option(False, True)},
)
_register("gsam", GSAM, (0.01, 1e-4, 3e-4), passes=GSAM.passes, **_with_radius(alpha=Hparam(0.4)))
_register(
    "sagm",
    SAGM,
    (0.01, 1e-4, 3e-4),
    passes=SAGM.passes,
    **_with_radius(alpha=Hparam(0.001, choice(0.001, 0.01, 0.02, 0.05, 0.1))),
)
# The search distributions of GAM and FAD are our own, around the defaults.
_register(
    "gam",
    GAM,
    (0.01, 1e-4, 1e-3),
    passes=GAM.passes,
    hparams={
        "rho": Hparam(0.2, choice(0.02, 0.05, 0.1, 0.2)),
        "gamma": Hparam(0.03, choice(0.01, 0.03, 0.05, 0.1)),
    },
)
_register(
    "fad",
    FAD,
    (0.01, 1e-4, 3e-4),
    passes=FAD.passes,
    **_with_radius(alpha=Hparam(1.0, choice(0.1, 0.5, 1.0)), beta=Hparam(0.5, choice(0.25, 0.5, 0.75))),
)
_register("genie", GENIE, (10.0, 0.1, 0.03), (0.1, log10_uniform(-2, 0)), hparams=_GENIE_HPARAMS, seeded=True)
_register(
    "genie_released",
    partial(GENIE, form="released"),
    (0.3, 0.003, 0.01),
    (0.015, log10_uniform(-3, -1)),
    summary="GENIE as in the code that its authors released.",
    hparams=_GENIE_HPARAMS,
    seeded=True,
)
# It has the rates of the released form, whose step it takes.
_register(
    "sign_genie",
    partial(GENIE, form="released", noise=0.0, dropout=0.0, seed=0),  # nothing is drawn
    (0.3, 0.003, 0.01),
    (0.015, log10_uniform(-3, -1)),
    summary="GENIE's released form without noise and mask: the step of its authors' Sign_GENIE, which uses no signs.",
    hparams={"beta": Hparam(0.95, uniform(0.9, 0.999))},
)
_register(
    "genie_adamw",
    GENIEAdamW,
    (0.01, 1e-4, 3e-4),
    summary="AdamW scaled by how far gradients agree, GENIE at Adam's learning rate.",
    hparams={"dropout": Hparam(0.0), "moment_dtype": Hparam("float32")},
    seeded=True,
)
OPTIMIZERS.register(
    "signum",
    OptimizerEntry(
        Signum,
        # Only 0.003 and 1e-4 were tuned. The others are Adam's times 0.3, the ratio of the two on small images.
        LearningRates((3e-4, log10_uniform(-5, -3)), 0.003),
        LearningRates((1.5e-5, log10_uniform(-5.5, -4)), 3e-5, 1e-4),
        hparams={"momentum": Hparam(0.9), "decoupled_weight_decay": Hparam(True)},
    ),
)
# Those of the released GENIE, of which this is the preconditioner. Only 0.3 and 0.01 were tuned.
_register("m_svag", MSVAG, (0.3, 0.003, 0.01), (0.015, log10_uniform(-3, -1)), hparams={"beta": Hparam(0.9)})
