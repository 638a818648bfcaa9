"""One run: its specification, its step, its loop and the model it keeps."""

from shiftproof.training.combinations import check_combination
from shiftproof.training.device import check_device, check_device_name
from shiftproof.training.parallel import Ranks
from shiftproof.training.protocol import PROTOCOLS, Protocol
from shiftproof.training.run import NonFiniteLossError, read_result, train
from shiftproof.training.saved_model import SavedModel, evaluate_folder, load
from shiftproof.training.spec import RunSpec
from shiftproof.training.step import StepBuilder

__all__ = [
    "PROTOCOLS",
    "NonFiniteLossError",
    "Protocol",
    "Ranks",
    "RunSpec",
    "SavedModel",
    "StepBuilder",
    "check_combination",
    "check_device",
    "check_device_name",
    "evaluate_folder",
    "load",
    "read_result",
    "train",
]
