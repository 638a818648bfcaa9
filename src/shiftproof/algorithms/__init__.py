"""Domain-generalization algorithms, one class each, with a common contract."""

from shiftproof.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    Closure,
    MakeClosure,
    OptimizerFactory,
    SingleDomainWarning,
)
from shiftproof.algorithms.and_mask import ANDMask
from shiftproof.algorithms.arm import ARM
from shiftproof.algorithms.coral import CORAL
from shiftproof.algorithms.cvar_dro import CVaRDRO
from shiftproof.algorithms.dann import CDANN, DANN
from shiftproof.algorithms.erm import ERM
from shiftproof.algorithms.fish import Fish
from shiftproof.algorithms.fishr import Fishr
from shiftproof.algorithms.group_dro import GroupDRO
from shiftproof.algorithms.gsnr_dropout import GSNRDropout
from shiftproof.algorithms.irm import IRM
from shiftproof.algorithms.linear_probe import LPFT, LinearProbe
from shiftproof.algorithms.lisa import LISA
from shiftproof.algorithms.miro import MIRO
from shiftproof.algorithms.mixstyle import MixStyle
from shiftproof.algorithms.mixup import Mixup
from shiftproof.algorithms.mldg import MLDG
from shiftproof.algorithms.mmd import MMD
from shiftproof.algorithms.mtl import MTL
from shiftproof.algorithms.rsc import RSC
from shiftproof.algorithms.sagnet import SagNet
from shiftproof.algorithms.vrex import VREx
from shiftproof.algorithms.vrgd import VRGD
from shiftproof.base.batch import Batch

__all__ = [
    "ALGORITHMS",
    "ARM",
    "CDANN",
    "CORAL",
    "DANN",
    "ERM",
    "IRM",
    "LISA",
    "LPFT",
    "MIRO",
    "MLDG",
    "MMD",
    "MTL",
    "RSC",
    "VRGD",
    "ANDMask",
    "Algorithm",
    "Batch",
    "CVaRDRO",
    "Closure",
    "Fish",
    "Fishr",
    "GSNRDropout",
    "GroupDRO",
    "LinearProbe",
    "MakeClosure",
    "MixStyle",
    "Mixup",
    "OptimizerFactory",
    "SagNet",
    "SingleDomainWarning",
    "VREx",
]
