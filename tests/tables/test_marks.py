import pytest

from shiftproof.protocol import Unit
from shiftproof.tables import estimate, marks
from shiftproof.tables.table import Cell


def _cell(*accuracies, planned=2):
    accuracy = estimate(list(accuracies)) if accuracies else None
    return Cell(accuracy, accuracy, None, len(accuracies), planned, False)


@pytest.mark.parametrize(
    ("cells", "marked"),
    [
        ([_cell(0.5, 0.5), _cell(0.7, 0.7), _cell(0.6, 0.6)], [None, "best", "second"]),
        ([_cell(0.5, 0.5), _cell(0.5, 0.5), _cell(0.4, 0.4)], ["best", "best", "second"]),
        ([_cell(0.9), _cell(0.5, 0.5), _cell(0.4, 0.4)], [None, "best", "second"]),  # a trial is missing
        ([_cell(0.5, 0.5), _cell(0.9), _cell()], [None, None, None]),  # with nothing to compare it to
        ([_cell(0.5, 0.5)], [None]),
    ],
)
def test_the_best_of_those_that_finished_are_marked(cells, marked):
    assert marks(cells, Unit()) == marked


def test_of_an_error_the_lowest_is_the_best():
    cells = [_cell(0.5, 0.5), _cell(0.7, 0.7), _cell(0.6, 0.6)]
    assert marks(cells, Unit.of("rmse")) == ["best", None, "second"]
