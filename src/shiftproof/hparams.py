"""The old address of `shiftproof.base.hparams`, which algorithms in files of their own may still use."""

from shiftproof.base.hparams import Hparam, choice, log2_int, log10_int, log10_uniform, uniform, uniform_int

__all__ = ["Hparam", "choice", "log2_int", "log10_int", "log10_uniform", "uniform", "uniform_int"]
