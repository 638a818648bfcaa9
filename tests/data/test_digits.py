import numpy as np
import pytest
from sklearn.datasets import load_digits

from shiftproof.base.registry import UnknownNameError
from shiftproof.data import DATASETS
from shiftproof.data.digit_domains import rotated as rotated_domains


@pytest.fixture(scope="module")
def rotated():
    return DATASETS["rotated_digits"].open(None, None)


@pytest.fixture(scope="module")
def colored():
    return DATASETS["colored_digits"].open(None, None)


def test_rotated_digits_holds_every_digit_once(rotated):
    assert rotated.domain_names == ("0", "15", "30", "45", "60", "75")
    assert [len(domain) for domain in rotated.domains] == [300, 300, 300, 299, 299, 299]
    labels = np.concatenate([domain.targets for domain in rotated.domains])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(load_digits().target))
    assert rotated.input_shape == (1, 16, 16)
    assert all(domain.inputs.dtype == np.uint8 for domain in rotated.domains)


def test_rotated_digits_are_turned_by_the_angle_in_their_name(rotated):
    """Turned back, the domains' mean images agree with the upright one's; as they are, they do not."""
    from scipy.ndimage import rotate

    upright = rotated.domains[0].inputs[:, 0].mean(axis=0)
    for domain in rotated.domains[2:]:
        mean = domain.inputs[:, 0].mean(axis=0)
        back = rotate(mean, -float(domain.name), reshape=False, order=1)

        def agreement(image):
            return np.corrcoef(image[3:13, 3:13].ravel(), upright[3:13, 3:13].ravel())[0, 1]

        assert agreement(back) > 0.9 > agreement(mean)


def test_colored_digits_have_the_colour_and_label_noise_of_their_domains(colored):
    assert colored.domain_names == ("plus90", "plus80", "minus90")
    for domain, correlation in zip(colored.domains, (0.9, 0.8, 0.1), strict=True):
        red, green, blue = (domain.inputs[:, channel].reshape(len(domain), -1).any(axis=1) for channel in range(3))
        assert not blue.any()
        assert (red ^ green).all()
        assert np.mean(green == domain.targets) == pytest.approx(correlation, abs=0.04)


def test_colored_digits_flip_a_quarter_of_the_labels(colored):
    rotated = DATASETS["rotated_digits"].open(None, None)  # the same digits in the same order
    digits = np.empty(1797, dtype=np.int64)
    for i, domain in enumerate(rotated.domains):
        digits[i::6] = domain.targets
    for i, domain in enumerate(colored.domains):
        assert np.mean((digits[i::3] < 5) != domain.targets) == pytest.approx(0.25, abs=0.04)


def test_data_sets_are_fixed(rotated, colored):
    assert DATASETS["rotated_digits"].open(None, None).fingerprint == rotated.fingerprint
    assert rotated.fingerprint != colored.fingerprint


def test_a_pixel_and_a_label_change_the_fingerprint():
    images, digits = np.zeros((12, 2, 2), dtype=np.uint8), np.arange(12) % 10
    other_images, other_digits = images.copy(), digits.copy()
    other_images[7, 1, 0] = other_digits[7] = 1

    def fingerprint(images, digits):
        return rotated_domains("made up", images, digits, lambda images, angle: images).fingerprint

    found = [fingerprint(*arrays) for arrays in ((images, digits), (other_images, digits), (images, other_digits))]
    assert found[0] == fingerprint(images.copy(), digits.copy())
    assert len(set(found)) == 3


def test_bad_input_is_refused(rotated, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean rotated_digits"):
        DATASETS["rotated_digit"]
    with pytest.raises(ValueError, match="takes no data folder"):
        DATASETS["rotated_digits"].open(tmp_path, None)
    with pytest.raises(ValueError, match="image size 32 is not available"):
        DATASETS["rotated_digits"].open(None, 32)
    with pytest.raises(UnknownNameError, match="unknown domain of rotated_digits '74'"):
        rotated.domain_index("74")
