"""A measure that is registered after the runs: tables compute it from the predictions that the runs kept."""

import numpy as np
import pytest

from shiftproof.base.files import DamagedFileError
from shiftproof.protocol import MEASURES, Measure, MeasureError
from shiftproof.studies import INDEX_FILE, Study, read_results, run_study
from shiftproof.tables import build_tables
from shiftproof.training import PREDICTIONS_FILE, read_predictions

NAME = "rows_of_the_first_class"


def first_class(predictions):
    """Share of rows for which the first class is predicted."""
    return (predictions.outputs.argmax(1) == 0).mean()


@pytest.fixture(scope="module", params=["vowels", "rotated_digits"])
def store(request, tmp_path_factory):
    """A study of vectors, whose targets are scored at all evaluations, and one of pictures, whose are not."""
    folder = tmp_path_factory.mktemp(request.param)
    vowels = request.param == "vowels"
    targets = ("speaker00", "speaker03") if vowels else ("0", "45")
    options = {} if vowels else {"fixed": {"data.batch_size": 4}}
    study = Study(
        datasets=(request.param,), optimizers=("sgd", "adam"), targets=targets, trials=1, steps=20, checkpoint_freq=5,
        **options,
    )  # fmt: skip
    run_study(study, folder, 1)
    return folder


@pytest.fixture
def register():
    names = []

    def registered(compute, **fields):
        MEASURES.register(NAME, Measure(compute, tasks=("classification",), **{"greater_is_better": True, **fields}))
        names.append(NAME)

    yield registered
    for name in names:
        MEASURES.withdraw(name)


def _values(run, domain, part):
    """The measure by step, from the predictions."""
    kept = read_predictions(run)
    return {step: float((kept.part(step, domain, part).outputs.argmax(1) == 0).mean()) for step in kept.outputs}


def _expected(store, row, everywhere):
    run = store / "runs" / row["run"]
    own = _values(run, row["target"], "in")
    if not everywhere:  # at the step that the study's own measure selected
        return own[row["selection"]["training_domain"]["step"]]
    kept = read_predictions(run)
    sources = [_values(run, domain, "out") for domain in kept.domains if domain != row["target"]]
    best = max(own, key=lambda step: (np.mean([values[step] for values in sources]), -step))
    return own[best]


def test_the_table_shows_it_and_where_targets_were_always_scored_selects_by_it(store, register):
    before = read_results(store)
    register(first_class)
    everywhere = "vowels" in store.name
    results = read_results(store, NAME)
    [table] = build_tables(results)
    for row in table.rows:
        for column in table.columns:
            [own] = [r for r in before.rows if r["target"] == column and r["optimizer"] == row.method.optimizer]
            assert row.cells[column].score.mean == _expected(store, own, everywhere)
    assert results.plan.metric == (NAME if everywhere else before.plan.metric)


def test_another_definition_is_computed_anew_and_the_index_does_not_hold_it(store, register):
    read_results(store)
    before = (store / INDEX_FILE).read_bytes()
    register(lambda predictions: 0.25)
    assert build_tables(read_results(store, NAME))[0].rows[0].mean.score.mean == 0.25
    MEASURES.withdraw(NAME)
    MEASURES.register(NAME, Measure(lambda predictions: 0.75, tasks=("classification",), greater_is_better=True))
    assert build_tables(read_results(store, NAME))[0].rows[0].mean.score.mean == 0.75
    assert NAME.encode() not in (store / INDEX_FILE).read_bytes()
    assert (store / INDEX_FILE).read_bytes().startswith(before)


def test_its_error_names_it_and_not_the_result(store, register):
    def broken(predictions):
        raise ZeroDivisionError("no rows")

    register(broken)
    with pytest.raises(MeasureError, match=f"'{NAME}' raised ZeroDivisionError: no rows"):
        read_results(store, NAME)


def test_without_predictions_it_cannot_be_shown(store, register):
    register(first_class)
    files = list(store.glob(f"runs/*/{PREDICTIONS_FILE}"))
    assert len(files) == 4
    for file in files:
        file.rename(file.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match=f"{NAME} cannot be shown: the runs of .* did not record it, and kept no"):
            read_results(store, NAME)
        files[0].write_bytes(b"not a file of arrays")
        with pytest.raises(DamagedFileError, match=PREDICTIONS_FILE):
            read_results(store, NAME)
    finally:
        for file in files:
            file.with_suffix(".away").rename(file)
