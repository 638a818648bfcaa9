"""Imports what a training process needs sooner or later, in the server that workers are forked from."""

from contextlib import suppress
from importlib import import_module

for _name in ("shiftproof.studies.runner", "torch._dynamo", "torchvision", "sklearn.datasets"):
    with suppress(Exception):  # the run that needs it says what is wrong
        import_module(_name)
