"""The state of accelerate, which a whole process shares."""

import sys


def forget_accelerate() -> None:
    """Leave the process as one that has not used accelerate."""
    if "accelerate" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
