from functools import partial
from importlib import import_module

import pytest
from torch.optim import SGD

from shiftproof.algorithms import ALGORITHMS, Algorithm
from shiftproof.annealing import ANNEALERS
from shiftproof.base.hparams import Hparam, log10_uniform
from shiftproof.base.registry import NameTakenError, Registry, RemovedNameError, UnknownNameError, _public
from shiftproof.data import DATASETS, DatasetEntry
from shiftproof.models import MODELS
from shiftproof.optim import OPTIMIZERS, LearningRates, OptimizerEntry
from shiftproof.protocol import RULES
from shiftproof.training.tracking import TRACKERS, TrackerEntry


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


def test_a_name_that_is_taken_names_both_places_once():
    registry = Registry("optimizer")
    registry.register("adam", 1)
    first = registry.place("adam")
    with pytest.raises(NameTakenError) as error:
        registry.register("adam", 2)
    second = error.traceback[0].lineno + 1
    assert str(error.value) == (
        f"optimizer 'adam' is registered already, in {first}; {__file__}, line {second} registers it again"
    )


@pytest.mark.parametrize("name", ["", "-dash", ".hidden", "two words", "a/b", "a+b", "a\n", "ä", 3, None])
def test_a_name_that_cannot_be_typed_is_refused(name):
    registry = Registry("optimizer")
    with pytest.raises(ValueError, match=r"the name of an optimizer must be made of letters .* not "):
        registry.register(name, 1)
    assert list(registry) == []


class _Undescribed:
    """Not what a registry holds."""


def _function(*arguments):
    """Not what a registry holds either."""


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        (ALGORITHMS, r"algorithm 'guest' must be a subclass of shiftproof\.algorithms\.Algorithm"),
        (ANNEALERS, r"annealer 'guest' must be a subclass of shiftproof\.annealing\.Annealer"),
        (OPTIMIZERS, r"optimizer 'guest' must be an instance of shiftproof\.optim\.OptimizerEntry"),
        (DATASETS, r"data set 'guest' must be an instance of shiftproof\.data\.DatasetEntry"),
        (MODELS, r"model 'guest' must be an instance of shiftproof\.models\.Model"),
        (RULES, r"selection rule 'guest' must be an instance of shiftproof\.protocol\.SelectionRule"),
        (TRACKERS, r"tracker 'guest' must be an instance of shiftproof\.training\.tracking\.TrackerEntry"),
    ],
)
@pytest.mark.parametrize(
    ("entry", "given"),
    [
        (_Undescribed, "the class _Undescribed"),
        (_function, "a function"),
        (object(), "an object"),
        (None, "a NoneType"),
    ],
)
def test_an_entry_of_another_type_is_refused(registry, expected, entry, given):
    with pytest.raises(ValueError, match=f"{expected}, not {given}$"):
        registry.register("guest", entry)
    assert "guest" not in registry


def test_the_class_that_an_error_names_is_where_it_says():
    for registry in (ALGORITHMS, ANNEALERS, OPTIMIZERS, DATASETS, MODELS, RULES, TRACKERS):
        module, _, name = _public(registry.instances_of or registry.subclasses_of).rpartition(".")
        assert getattr(import_module(module), name) in (registry.instances_of, registry.subclasses_of)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"tilt": 1.0}, r"hparams of algorithm 'guest' must hold an Hparam for every name, .* not 'tilt': 1\.0"),
        (["tilt"], r"hparams of algorithm 'guest' must be a mapping, .* not \['tilt'\]"),
    ],
)
def test_hyperparameters_of_an_entry_are_checked(hparams, message):
    guest = type("Guest", (Algorithm,), {"hparams": hparams})
    with pytest.raises(ValueError, match=message):
        ALGORITHMS.register("guest", guest)


_RATES = LearningRates((1e-3, log10_uniform(-4, -2)), 0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerEntry(SGD, 0.1, 0.1), r"lr_scratch of OptimizerEntry must be LearningRates, .* not 0\.1"),
        (lambda: OptimizerEntry(SGD, _RATES, 0.1), r"lr_pretrained of OptimizerEntry must be LearningRates"),
        (lambda: OptimizerEntry("sgd", _RATES, _RATES), r"build of OptimizerEntry must be .* not 'sgd'"),
        (
            lambda: OptimizerEntry(SGD, _RATES, _RATES, {"momentum": 0.9}),
            r"hparams of OptimizerEntry must hold an Hparam",
        ),
        (
            lambda: OptimizerEntry(SGD, _RATES, _RATES, short_hparams={"momentum": 0.9}),
            r"short_hparams of OptimizerEntry must hold an Hparam",
        ),
        (lambda: OptimizerEntry(SGD, _RATES, _RATES, passes=0), r"passes of OptimizerEntry must be .* not 0"),
        (
            lambda: LearningRates(1e-3, 0.01),
            r"protocol of LearningRates must be a default and a distribution, .* 0\.001",
        ),
        (lambda: LearningRates((1e-3, 1e-2), 0.01), r"protocol of LearningRates must be a default and a distribution"),
        (lambda: LearningRates((1e-3, log10_uniform(-4, -2)), 0), r"a learning rate must be .* above 0, not 0"),
        (lambda: LearningRates((1e-3, log10_uniform(-4, -2)), 0.01, 0), r"a learning rate must be .* above 0, not 0"),
        (lambda: LearningRates((1e-3, log10_uniform(-4, -2)), "1"), r"a learning rate must be .* above 0, not '1'"),
        (lambda: DatasetEntry(_function, kind="pictures"), r"kind of DatasetEntry must be photographs or small_images"),
        (lambda: DatasetEntry(lambda folder: None, None), r"open of DatasetEntry must take 3 arguments"),
        (lambda: DatasetEntry(lambda folder: None, "photographs"), r"open of DatasetEntry must take 2 arguments"),
        (lambda: DatasetEntry(None, "photographs"), r"open of DatasetEntry must be a function or a class, not None"),
        (lambda: DatasetEntry(_function, "photographs", model=3), r"model of DatasetEntry must be the name of a model"),
        (lambda: DatasetEntry(_function, "photographs", {}), r"outline of DatasetEntry must be an Outline"),
        (lambda: TrackerEntry("Lines", "lines", _function), r"modules of TrackerEntry must be a tuple .* not 'lines'"),
        (lambda: TrackerEntry(None, (), _function), r"title of TrackerEntry must be a text, not None"),
        (lambda: TrackerEntry("Lines", (), lambda: None), r"open of TrackerEntry must take 1 argument \(too many"),
        (lambda: Hparam(None), r"the default of a hyperparameter must be .* not None"),
        (lambda: Hparam(0.1, (0.1, 0.2)), r"what a search draws must be a function, .* not \(0\.1, 0\.2\)"),
    ],
)
def test_an_entry_of_the_right_type_with_the_wrong_content_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_summary_is_the_first_line_of_what_is_there():
    registry = Registry("optimizer")
    registry.register("adam", partial(_function), summary="\nFirst.\nSecond.")
    registry.register("sgd", partial(partial(_function)))
    registry.register("none", lambda: None)
    assert [registry.summary(name) for name in registry] == [
        "First.",
        "Not what a registry holds either.",
        "(no description)",
    ]


def test_a_summary_is_a_text():
    registry = Registry("optimizer")
    with pytest.raises(ValueError, match=r"the summary of optimizer 'adam' must be a text, not 3"):
        registry.register("adam", 1, summary=3)
