import pytest

from shiftproof.base.registry import Registry, RemovedNameError, UnknownNameError


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


def test_a_removed_name_says_why_and_is_none_of_the_valid_ones():
    registry = Registry("optimizer", removed={"adagrad": "it was slow. Use adam"})
    registry.register("adam", 1)
    with pytest.raises(RemovedNameError) as error:
        registry["adagrad"]
    assert str(error.value) == "optimizer 'adagrad' was removed: it was slow. Use adam"
    assert isinstance(error.value, UnknownNameError)
    assert "adagrad" not in registry
    assert list(registry) == ["adam"]
    with pytest.raises(UnknownNameError) as error:
        registry["adagrat"]
    assert not isinstance(error.value, RemovedNameError)
    assert "adagrad" not in str(error.value)
