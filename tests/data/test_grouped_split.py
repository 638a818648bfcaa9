import numpy as np
import pytest

from shiftproof.data import grouped_split, random_split


def test_grouped_split_parts_no_group_and_every_image_is_on_one_side():
    groups = np.random.default_rng(0).integers(0, 40, size=203)
    split = grouped_split(groups, 0, 0)
    assert not set(groups[split.in_]) & set(groups[split.out])
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(203))
    assert len(split.out) == 40  # int(0.2 * 203), reachable with groups of about 5


def test_grouped_split_holds_out_a_fifth_of_single_images():
    assert len(grouped_split(np.arange(1670), 0, 2).out) == 334


def test_grouped_split_depends_on_trial_and_domain_only():
    groups = np.arange(60) // 3
    first, again = grouped_split(groups, 1, 2), grouped_split(groups, 1, 2)
    assert first.out.tolist() == again.out.tolist()
    assert first.out.tolist() != grouped_split(groups, 2, 2).out.tolist()
    assert first.out.tolist() != grouped_split(groups, 1, 3).out.tolist()


def test_grouped_split_shuffles_groups_as_random_split_shuffles_images():
    pairs = np.arange(20) // 2
    held_out = np.sort(random_split(10, 0, 0).out)
    assert grouped_split(pairs, 0, 0).out.tolist() == np.flatnonzero(np.isin(pairs, held_out)).tolist()


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ([4, 4, 4, 4], 4),  # 3 wanted: one group of 4 comes closer than none
        ([3, 3, 14], 3),  # 4 wanted: 3 is closer than 6
        ([5, 5, 5, 5, 5], 5),
        ([1, 9], 1),  # 2 wanted
    ],
)
def test_grouped_split_comes_as_close_as_whole_groups_allow(sizes, held_out):
    assert len(grouped_split(np.repeat(np.arange(len(sizes)), sizes), 0, 0).out) == held_out


@pytest.mark.parametrize("groups", [np.zeros(50), np.arange(4)])
def test_grouped_split_refuses_what_it_cannot_divide(groups):
    with pytest.raises(ValueError, match="too small to split by groups"):
        grouped_split(groups.astype(np.int64), 0, 0)
