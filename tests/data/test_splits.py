import numpy as np
import pytest

from shiftproof.data import random_split

PACS = [  # images, out, in, first out indices, first in indices, at trial 0
    (2048, 409, 1639, [548, 677, 1997, 977, 1553, 1123], [895, 510, 1575]),
    (2344, 468, 1876, [1488, 562, 461, 570, 2092, 1124], [1129, 1175, 567]),
    (1670, 334, 1336, [1441, 1432, 282, 669, 637, 829], [764, 1046, 1426]),
    (3929, 785, 3144, [2743, 2083, 2744, 3449, 1159, 1137], [2874, 719, 2027]),
]


@pytest.mark.parametrize("domain", range(4))
def test_random_split_is_domainbeds(domain):
    count, out, in_, first_out, first_in = PACS[domain]
    split = random_split(count, 0, domain)
    assert (len(split.out), len(split.in_)) == (out, in_)
    assert split.out[:6].tolist() == first_out
    assert split.in_[:3].tolist() == first_in
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(count))


def test_random_split_differs_between_trials():
    assert random_split(100, 0, 0).out.tolist() != random_split(100, 1, 0).out.tolist()


def test_random_split_refuses_a_domain_without_a_held_out_image():
    with pytest.raises(ValueError, match="4 images is too small to split"):
        random_split(4, 0, 0)
