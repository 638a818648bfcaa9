"""Imports the modules that training needs, so that workers forked from the server process have them already."""

from contextlib import suppress
from importlib import import_module

for _name in ("shiftproof.studies.runner", "torch._dynamo", "torchvision", "sklearn.datasets"):
    with suppress(Exception):  # the run that needs the module will report the error
        import_module(_name)
