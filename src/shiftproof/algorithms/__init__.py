"""Domain-generalization algorithms, one class each, with a common contract."""

from shiftproof.algorithms.adrmx import ADRMX
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
from shiftproof.algorithms.cad import CAD, CondCAD
from shiftproof.algorithms.coral import CORAL
from shiftproof.algorithms.cutmix import CutMix
from shiftproof.algorithms.dann import CDANN, DANN
from shiftproof.algorithms.erm import ERM
from shiftproof.algorithms.fish import Fish
from shiftproof.algorithms.fishr import Fishr
from shiftproof.algorithms.group_dro import GroupDRO
from shiftproof.algorithms.gsnr_dropout import GSNRDropout
from shiftproof.algorithms.irm import IRM
from shiftproof.algorithms.linear_probe import LPFT, LinearProbe
from shiftproof.algorithms.miro import MIRO
from shiftproof.algorithms.mixstyle import MixStyle, MixStyleDomains
from shiftproof.algorithms.mixup import Mixup, OrgMixup
from shiftproof.algorithms.mldg import MLDG
from shiftproof.algorithms.mmd import MMD
from shiftproof.algorithms.mtl import MTL
from shiftproof.algorithms.rsc import RSC
from shiftproof.algorithms.sagnet import SagNet
from shiftproof.algorithms.selfreg import SelfReg
from shiftproof.algorithms.transfer import Transfer
from shiftproof.algorithms.vrex import VREx
from shiftproof.base.batch import Batch

__all__ = [
    "ADRMX",
    "ALGORITHMS",
    "ARM",
    "CAD",
    "CDANN",
    "CORAL",
    "DANN",
    "ERM",
    "IRM",
    "LPFT",
    "MIRO",
    "MLDG",
    "MMD",
    "MTL",
    "RSC",
    "ANDMask",
    "Algorithm",
    "Batch",
    "Closure",
    "CondCAD",
    "CutMix",
    "Fish",
    "Fishr",
    "GSNRDropout",
    "GroupDRO",
    "LinearProbe",
    "MakeClosure",
    "MixStyle",
    "MixStyleDomains",
    "Mixup",
    "OptimizerFactory",
    "OrgMixup",
    "SagNet",
    "SelfReg",
    "SingleDomainWarning",
    "Transfer",
    "VREx",
]
