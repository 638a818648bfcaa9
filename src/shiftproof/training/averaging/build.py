"""The average that a run asks for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shiftproof.base.choices import COMBINATIONS, Averaging
from shiftproof.base.field_error import FieldError
from shiftproof.training.averaging.moving import BMA, EMA, SMA, MovingAverage
from shiftproof.training.averaging.released_swad import ReleasedSWAD
from shiftproof.training.averaging.swad import SWAD, TOLERANCE, TOLERANCE_VLCS
from shiftproof.training.averaging.wise_ft import WiSEFT
from shiftproof.training.spec import RunSpec

SWADS: tuple[Averaging, ...] = ("swad", "swad_released")
"""The forms of SWAD, which may end a run before its last step."""

MOVING: tuple[Averaging, ...] = ("ema", "sma", "bma")
"""The moving averages, which are scored in the place of the trained weights."""

Average = MovingAverage | SWAD | WiSEFT


def build_average(spec: RunSpec, start: Mapping[str, Tensor]) -> Average | None:
    """Build the average that a run asks for; None if it asks for none.

    Args:
        spec: the run's spec.
        start: the weights before the first update.

    Raises:
        FieldError: it combines other runs.
    """
    check_trained_alone(spec)
    tolerance = TOLERANCE_VLCS if spec.dataset == "VLCS" else TOLERANCE
    match spec.averaging:
        case "ema":
            return EMA(start)
        case "sma":
            return SMA(start, spec.steps)
        case "bma":
            return BMA(start, spec.steps)
        case "swad":
            return SWAD(tolerance)
        case "swad_released":
            return ReleasedSWAD(tolerance)
        case "wise_ft":
            return WiSEFT(start)
        case _:
            return None


def check_trained_alone(spec: RunSpec) -> None:
    """Check that a run is one to train, and not made of finished ones.

    Raises:
        FieldError: it combines other runs.
    """
    if spec.members or spec.averaging in COMBINATIONS:
        raise FieldError("averaging", f"{spec.averaging} is made of finished runs, by study combine, and never trained")
