"""The figures of the papers, as the package carries them."""

import pytest

from shiftproof.base.registry import UnknownNameError
from shiftproof.data import DATASETS
from shiftproof.studies.published_results import Published, PublishedKey, published, published_for


def test_a_figure_comes_with_what_it_depends_on():
    assert published("annealing")[PublishedKey("erm", "adam", "gga", "PACS")] == Published(
        value=pytest.approx(0.864),
        error=pytest.approx(0.005),
        source="GGA, corrected arXiv version",
        selection="training_domain",
        tuning="per data set",
        note="",
    )


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("optimizers", ("erm", "adam", "none", "PACS"), 0.842),
        ("optimizers", ("erm", "genie_released", "none", "TerraIncognita"), 0.52),
        ("optimizers", ("erm", "fad", "none", "mean"), 0.653),
        ("algorithms", ("coral", "genie_released", "none", "mean"), 0.719),
        ("single_source", ("rsc", "sgd", "none", "OfficeHome"), 0.017),
        ("convergence_15000", ("erm", "sam", "none", "VLCS"), 0.804),
        ("convergence_5000", ("erm", "genie_released", "none", "seconds"), 4292.0),
        ("annealing", ("erm", "adam", "gga_l", "mean"), 0.651),
    ],
)
def test_accuracies_are_parts_of_one_and_times_seconds(table, key, value):
    figure = published_for(table, *key)
    assert figure.value == pytest.approx(value)
    assert figure == published(table)[key]


def test_what_the_papers_left_out_is_none_or_empty():
    figure = published_for("optimizers", "erm", "adam", "none", "PACS")
    assert (figure.error, figure.note) == (None, "")
    figure = published_for("convergence_5000", "erm", "sgd", "none", "PACS")
    assert (figure.tuning, figure.note) == ("defaults, one run", "sgd without momentum, lr 5e-5")


def test_every_row_of_the_tables_is_there():
    sizes = {"optimizers": 60, "algorithms": 115, "single_source": 50, "annealing": 18}
    sizes |= dict.fromkeys(("convergence_5000", "convergence_10000", "convergence_15000"), 16)
    assert {table: len(published(table)) for table in sizes} == sizes
    keys = {key for table in sizes for key in published(table)}
    assert {key.dataset for key in keys} - {"mean", "seconds"} <= set(DATASETS)


def test_genie_stands_beside_its_released_form_marked():
    released = published_for("optimizers", "erm", "genie_released", "none", "PACS")
    assert (released.value, released.released_form) == (pytest.approx(0.878), False)
    own = published_for("optimizers", "erm", "genie", "none", "PACS")
    assert (own.value, own.released_form) == (pytest.approx(0.878), True)


@pytest.mark.parametrize(
    "key",
    [
        ("erm", "asam", "none", "PACS"),
        ("erm", "genie", "gga", "PACS"),
        ("irm", "genie", "none", "PACS"),
        ("erm", "adam", "none", "rotated_digits"),
    ],
)
def test_what_was_not_published_is_none(key):
    assert published_for("optimizers", *key) is None


def test_an_unknown_table_is_refused():
    message = (
        "unknown published table 'optimizer'. Did you mean optimizers? Valid names: optimizers, algorithms, "
        "single_source, convergence_5000, convergence_10000, convergence_15000, annealing"
    )
    with pytest.raises(UnknownNameError) as error:
        published("optimizer")
    assert str(error.value) == message
    with pytest.raises(UnknownNameError):
        published_for("optimizer", "erm", "adam", "none", "PACS")


def test_a_caller_cannot_change_the_tables():
    published("annealing").clear()
    assert len(published("annealing")) == 18
