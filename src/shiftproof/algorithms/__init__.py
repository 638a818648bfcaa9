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
from shiftproof.algorithms.causirl import CausIRLCORAL, CausIRLMMD
from shiftproof.algorithms.clip import CLIPood, ZeroShot
from shiftproof.algorithms.coral import CORAL
from shiftproof.algorithms.cutmix import CutMix
from shiftproof.algorithms.cvar_dro import CVaRDRO
from shiftproof.algorithms.dann import CDANN, DANN
from shiftproof.algorithms.eqrm import EQRM
from shiftproof.algorithms.erm import ERM
from shiftproof.algorithms.fish import Fish
from shiftproof.algorithms.fishr import Fishr
from shiftproof.algorithms.group_dro import GroupDRO
from shiftproof.algorithms.gsnr_dropout import GSNRDropout
from shiftproof.algorithms.iga import IGA
from shiftproof.algorithms.information_bottleneck import IBERM, IBIRM
from shiftproof.algorithms.irm import IRM
from shiftproof.algorithms.linear_probe import LPFT, LinearProbe
from shiftproof.algorithms.lisa import LISA
from shiftproof.algorithms.miro import MIRO
from shiftproof.algorithms.mixstyle import MixStyle, MixStyleDomains
from shiftproof.algorithms.mixup import Mixup, OrgMixup
from shiftproof.algorithms.mldg import MLDG
from shiftproof.algorithms.mmd import MMD
from shiftproof.algorithms.mtl import MTL
from shiftproof.algorithms.rdm import RDM
from shiftproof.algorithms.rsc import RSC
from shiftproof.algorithms.sagnet import SagNet
from shiftproof.algorithms.sand_mask import SANDMask
from shiftproof.algorithms.selfreg import SelfReg
from shiftproof.algorithms.spectral_decoupling import SpectralDecoupling
from shiftproof.algorithms.transfer import Transfer
from shiftproof.algorithms.trm import TRM
from shiftproof.algorithms.urm import URM
from shiftproof.algorithms.vrex import VREx
from shiftproof.algorithms.vrgd import VRGD
from shiftproof.base.batch import Batch

__all__ = [
    "ADRMX",
    "ALGORITHMS",
    "ARM",
    "CAD",
    "CDANN",
    "CORAL",
    "DANN",
    "EQRM",
    "ERM",
    "IBERM",
    "IBIRM",
    "IGA",
    "IRM",
    "LISA",
    "LPFT",
    "MIRO",
    "MLDG",
    "MMD",
    "MTL",
    "RDM",
    "RSC",
    "TRM",
    "URM",
    "VRGD",
    "ANDMask",
    "Algorithm",
    "Batch",
    "CLIPood",
    "CVaRDRO",
    "CausIRLCORAL",
    "CausIRLMMD",
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
    "SANDMask",
    "SagNet",
    "SelfReg",
    "SingleDomainWarning",
    "SpectralDecoupling",
    "Transfer",
    "VREx",
    "ZeroShot",
]
