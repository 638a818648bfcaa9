import gzip

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, rotate

from data.mnist_files import COUNTS, made_up_mnist, write_mnist
from shiftproof.data import DATASETS, DatasetNotFoundError
from shiftproof.data.check import check_data
from shiftproof.data.digit_domains import colored
from shiftproof.data.downloads import SOURCES
from shiftproof.data.downloads.folders import fetch_mnist
from shiftproof.data.downloads.http import RemoteFile
from shiftproof.data.mnist import MNISTError, read_mnist
from shiftproof.studies import Study
from shiftproof.studies.study_data import data_folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def originals(data_dir):
    """Images and digits of both parts."""
    parts = read_mnist(data_dir / "MNIST" / "raw")
    assert {part: len(digits) for part, (_, digits) in parts.items()} == {
        "train": COUNTS["train"],
        "test": COUNTS["t10k"],
    }
    return tuple(np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True))


def find(image, candidates):
    """Return which candidate an image is."""
    [found] = np.flatnonzero((candidates == image).all(axis=(1, 2)))
    return int(found)


def test_rotated_mnist_turns_every_digit_once_as_domainbed_does(data_dir, originals):
    images, digits = originals
    dataset = DATASETS["rotated_mnist"].open(data_dir, None)
    assert dataset.domain_names == ("0", "15", "30", "45", "60", "75")
    assert (dataset.input_shape, len(dataset.classes), dataset.kind) == ((1, 28, 28), 10, "small_images")
    seen = []
    for domain in dataset.domains:
        assert len(domain) == 12
        turned = [
            rotate(Image.fromarray(image), int(domain.name), InterpolationMode.BICUBIC, fill=(0,)) for image in images
        ]
        found = [find(image[0], np.stack(turned)) for image in domain.inputs]
        np.testing.assert_array_equal(domain.targets, digits[found])
        seen += found
    assert sorted(seen) == list(range(72))


def test_colored_mnist_colours_every_digit_once(data_dir, originals):
    images, digits = originals
    dataset = DATASETS["colored_mnist"].open(data_dir, 28)
    assert dataset.domain_names == ("plus90", "plus80", "minus90")
    assert (dataset.input_shape, dataset.classes) == ((2, 28, 28), ("at least 5", "below 5"))
    seen = []
    for domain in dataset.domains:
        assert len(domain) == 24
        assert (domain.inputs.any(axis=(2, 3)).sum(axis=1) == 1).all()  # one channel is empty
        seen += [find(image.sum(axis=0), images) for image in domain.inputs]
    assert sorted(seen) == list(range(72))
    below = np.concatenate([domain.targets for domain in dataset.domains]) == 1
    assert 0.6 < (below == (digits[seen] < 5)).mean() < 0.9  # 0.75 but for chance


def test_labels_and_colours_are_flipped_as_often_as_they_should_be():
    count = 60_000
    digits = np.arange(count) % 10
    images = np.full((count, 1, 1), 255, dtype=np.uint8)
    for i, (domain, flip) in enumerate(zip(colored("large", images, digits, 2).domains, (0.1, 0.2, 0.9), strict=True)):
        assert np.mean(domain.targets != (digits[i::3] < 5)) == pytest.approx(0.25, abs=0.01)
        colours = domain.inputs[:, 1, 0, 0] > 0
        assert np.mean(colours != domain.targets) == pytest.approx(flip, abs=0.01)


def test_the_sets_are_fixed_and_trained_on_like_digits(data_dir):
    first = DATASETS["rotated_mnist"].open(data_dir, None)
    assert DATASETS["rotated_mnist"].open(data_dir, None).fingerprint == first.fingerprint
    assert DATASETS["colored_mnist"].open(data_dir, None).fingerprint != first.fingerprint
    assert not DATASETS["rotated_mnist"].embedded


def test_a_study_hands_them_its_data_folder_and_embedded_digits_none(data_dir):
    study = Study(datasets=("rotated_mnist", "rotated_digits"), data_dir=data_dir, optimizers=("adam",), trials=1)
    assert data_folder(study, "rotated_mnist") == data_dir
    assert data_folder(study, "rotated_digits") is None


def test_check_counts_digits_and_says_that_this_is_not_all_of_mnist(data_dir):
    checked = check_data(data_dir / "MNIST")
    assert checked.counts["train"] == {str(digit): 6 for digit in range(10)}
    assert checked.counts["test"] == {str(digit): 2 if digit < 2 else 1 for digit in range(10)}
    assert checked.differences == ("60 images in train instead of 60000", "12 images in test instead of 10000")
    assert not checked.ok
    assert check_data(data_dir, "rotated_mnist") == checked
    assert SOURCES["rotated_mnist"].count(data_dir / "MNIST") == (checked.counts, checked.differences)


def test_missing_and_damaged_files_are_named(data_dir, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="colored_mnist needs a data folder"):
        DATASETS["colored_mnist"].open(None, None)
    with pytest.raises(DatasetNotFoundError, match="train-images-idx3-ubyte: no such file; `shiftproof data get"):
        DATASETS["rotated_mnist"].open(tmp_path, None)
    with pytest.raises(ValueError, match="image size 32 is not available"):
        DATASETS["rotated_mnist"].open(data_dir, 32)


@pytest.mark.parametrize("damage", ["cut", "magic", "label", "count"])
def test_damage_is_found(tmp_path, damage):
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    name = "t10k-images-idx3-ubyte" if damage in ("cut", "magic") else "t10k-labels-idx1-ubyte"
    content = made_up_mnist()[name]
    changed = {
        "cut": content[:-100],
        "magic": b"\1" + content[1:],
        "label": content[:-1] + b"\x0b",
        "count": content[:4] + (11).to_bytes(4, "big") + content[8:-1],
    }[damage]
    (raw / name).write_bytes(changed)
    with pytest.raises(MNISTError, match=r"t10k-images-idx3-ubyte"):
        read_mnist(raw)


def test_compressed_files_are_fetched_and_unpacked(server, tmp_path, originals):
    files = [
        RemoteFile(server.serve(f"{name}.gz", gzip.compress(content)), f"{name}.gz")
        for name, content in made_up_mnist().items()
    ]
    assert fetch_mnist(files, tmp_path / "downloads", tmp_path / "MNIST") == []
    images, _ = read_mnist(tmp_path / "MNIST" / "raw")["train"]
    np.testing.assert_array_equal(images, originals[0][:60])
