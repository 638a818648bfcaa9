import numpy as np

from shiftproof.data import batch_indices


def test_batches_are_a_function_of_seed_step_and_domain():
    candidates = [np.arange(100, 200), np.arange(50)]
    batches = batch_indices(candidates, 8, seed=1, step=3)
    for again, batch in zip(batch_indices(candidates, 8, seed=1, step=3), batches, strict=True):
        np.testing.assert_array_equal(again, batch)
    others = [batch_indices(candidates, 8, seed=2, step=3), batch_indices(candidates, 8, seed=1, step=4)]
    assert all((other[0] != batches[0]).any() for other in others)
    alone = batch_indices(candidates[:1], 8, seed=1, step=3)  # another domain disturbs none
    np.testing.assert_array_equal(alone[0], batches[0])


def test_batches_draw_every_candidate_alike_with_replacement():
    drawn = np.concatenate([batch_indices([np.arange(7, 12)], 50, 0, step)[0] for step in range(1, 101)])
    counts = np.bincount(drawn)[7:]
    assert counts.sum() == 5000
    assert (abs(counts - 1000) < 5 * np.sqrt(5000 * 0.2 * 0.8)).all()
