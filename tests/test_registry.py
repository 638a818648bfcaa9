import pytest

from shiftproof.registry import Registry, UnknownNameError


def test_unknown_name_lists_near_matches_and_all_names():
    registry = Registry("optimizer")
    for name in ("adam", "adamw", "sgd"):
        registry.register(name, name.upper())
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adm'\. Did you mean adam or adamw\?.*sgd"):
        registry["adm"]
    assert list(registry) == ["adam", "adamw", "sgd"]
    assert registry["sgd"] == "SGD"


def test_a_name_is_registered_once():
    registry = Registry("optimizer")
    registry.register("adam", 1)
    with pytest.raises(ValueError, match="'adam' is registered already"):
        registry.register("adam", 2)
