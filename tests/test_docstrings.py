"""The examples of docstrings run, and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


def test_there_are_examples():
    assert len(MODULES) > 25


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    torch.manual_seed(0)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0
