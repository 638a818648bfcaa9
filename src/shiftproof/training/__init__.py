"""One run: its specification, its step, its loop and the model it keeps."""

from shiftproof.protocol.dialects import PROTOCOLS, Protocol
from shiftproof.training.build import build_algorithm, build_steps
from shiftproof.training.combinations import check_combination
from shiftproof.training.device import check_device, check_device_name
from shiftproof.training.loop import Callback, Loop, NonFiniteLossError
from shiftproof.training.ranks.split import Ranks
from shiftproof.training.run import read_result, train
from shiftproof.training.saved_model import SavedModel, evaluate_folder, load
from shiftproof.training.spec import RunSpec
from shiftproof.training.step import StepBuilder

__all__ = [
    "PROTOCOLS",
    "Callback",
    "Loop",
    "NonFiniteLossError",
    "Protocol",
    "Ranks",
    "RunSpec",
    "SavedModel",
    "StepBuilder",
    "build_algorithm",
    "build_steps",
    "check_combination",
    "check_device",
    "check_device_name",
    "evaluate_folder",
    "load",
    "read_result",
    "train",
]
