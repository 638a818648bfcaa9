"""Own data in Python: what is wrong with it is said before anything is trained."""

from dataclasses import replace

import numpy as np
import pytest

from shiftproof.data import Column, Domain, DomainDataset

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
CLASSES = ("cat", "dog", "horse")


def dataset(*domains, classes=CLASSES, name="mine", kind="small_images", **changes):
    return DomainDataset(name, domains, classes, kind, "x", **changes)


def domain(name="art", **changes):
    return Domain(**{"name": name, "inputs": IMAGES, "targets": LABELS, **changes})


def test_good_data_are_taken():
    groups = np.array([7, 7, -1, 2, 3, 2**40])
    assert dataset(domain(groups=groups), domain("photo")).input_shape == (3, 8, 8)
    assert len(dataset(domain(inputs=IMAGES[:, :1, :, :5])).domains[0]) == 6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            IMAGES / 255,
            r"inputs of domain art must be uint8 \(pictures, from 0 to 255\) or float32 \(vectors\), not float64: for "
            r"pictures, \(inputs \* 255\)\.round\(\)\.astype\(np\.uint8\) for values in \[0, 1\]; for vectors, ",
        ),
        (
            IMAGES.astype(np.int64),
            r"not int64: for pictures, inputs\.astype\(np\.uint8\) for values from 0 to 255; for",
        ),
        (IMAGES > 9, r"not bool: for pictures, inputs\.astype\(np\.uint8\) \* 255"),
        (IMAGES[:, 0, 0].astype(np.float64), r"not float64: inputs\.astype\(np\.float32\)$"),
        (IMAGES.tolist(), "must be a numpy array, not list"),
        (IMAGES[:, 0], r"must have shape \(n, channels, height, width\), not \(6, 8, 8\): inputs\[:, None\] for grey"),
        (IMAGES[0, 0], r"must have shape \(n, channels, height, width\), not \(8, 8\): inputs\.astype\(np\.float32\)"),
        (IMAGES[:, 0, 0, 0].astype(np.float32), r"must have shape \(n, size\), not \(6,\): inputs\[:, None\] for one"),
        (IMAGES.transpose(0, 2, 3, 1), r"\(6, 8, 8, 3\), which looks like .*: inputs\.transpose\(0, 3, 1, 2\)"),
        (IMAGES[:, :1].transpose(0, 2, 3, 1), r"\(6, 8, 8, 1\), which looks like .*: inputs\.transpose\(0, 3, 1, 2\)"),
        (IMAGES[:, :1].repeat(4, 1).transpose(0, 2, 3, 1), r"\(6, 8, 8, 4\), which looks like \(n, height, width, cha"),
        (IMAGES[:, :1, :, :5].transpose(0, 2, 3, 1).repeat(2, 2), r"\(6, 8, 10, 1\), which looks like"),
        (IMAGES[:, :0], r"have shape \(0, 8, 8\), which holds nothing"),
        (IMAGES[:0], "domain art has no rows; leave it out"),
    ],
)
def test_images_of_another_type_or_shape_are_refused_with_a_remedy(images, message):
    with pytest.raises(ValueError, match=message):
        domain(inputs=images)


def test_the_remedies_are_right():
    np.testing.assert_array_equal(domain(inputs=(IMAGES / 255 * 255).round().astype(np.uint8)).inputs, IMAGES)
    np.testing.assert_array_equal(domain(inputs=IMAGES.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2)).inputs, IMAGES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LABELS.astype(np.float64),
            r"targets of domain art must be int64, or float32 for regression, not float64: targets\.astype",
        ),
        (LABELS.astype(np.uint8), "must be int64, or float32 for regression, not uint8"),
        (LABELS.tolist(), "must be a numpy array, not list"),
        (LABELS[:5], r"must have shape \(6,\), one per row of the inputs, not \(5,\)"),
    ],
)
def test_labels_and_groups_of_another_type_or_shape_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        domain(targets=labels)
    with pytest.raises(
        ValueError, match=message.replace("targets", "groups").replace(r", or float32 for regression", "")
    ):
        domain(groups=labels)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (list("abcdef"), r"ids of domain art must be a numpy array of texts: np\.array\(ids, dtype=str\)"),
        (np.arange(6), "ids of domain art must be a numpy array of texts"),
        (np.array(list("abcdef"), dtype=object), "ids of domain art must be a numpy array of texts"),
        (np.array(list("abcde")), r"ids of domain art must have shape \(6,\), one per row of the inputs, not \(5,\)"),
    ],
)
def test_ids_are_texts_one_per_row(ids, message):
    assert domain().ids is None
    assert domain(ids=np.array(list("abcdef"))).ids[5] == "f"
    with pytest.raises(ValueError, match=message):
        domain(ids=ids)


def test_labels_must_be_of_the_classes():
    for off, found in ((1, "from 1 to 3"), (-1, "from -1 to 1")):
        with pytest.raises(
            ValueError,
            match=f"data set mine: targets of domain photo are {found}, but 3 classes are numbered from 0 to 2",
        ):
            dataset(domain(), domain("photo", targets=LABELS + off))


def test_shapes_must_agree_over_domains():
    with pytest.raises(ValueError, match=r"inputs of domain photo have shape \(1, 8, 8\), those of art \(3, 8, 8\)"):
        dataset(domain(), domain("photo", inputs=IMAGES[:, :1]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "data set mine: it has no domains"),
        (("art", "art"), "domain art is named twice"),
        (("a", "b", "a+b"), r"domains a and a\+b cannot be told apart in targets.*rename a\+b"),
        (("a+b", "c", "a", "b+c"), r"domains a and a\+b cannot be told apart"),
        ((3, 4), r"the name 3 must be a str, not int: str\(name\)"),
        (("art", "b\udcff"), r"the name b\\udcff is not valid text; rename it"),
    ],
)
def test_names_of_domains_must_tell_them_apart(names, message):
    with pytest.raises(ValueError, match=message):
        dataset(*map(domain, names))


def test_a_plus_sign_that_is_not_ambiguous_is_taken():
    assert dataset(*map(domain, ("a+b", "b", "c+d", "ab"))).domain_names == ("a+b", "b", "c+d", "ab")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat",), r"it has 1 class\(es\); with fewer than two there is nothing to tell apart"),
        ((), r"it has 0 class\(es\)"),
        (("cat", "dog", "cat"), "class cat is named twice"),
        ((0, 1, 2), r"the name 0 must be a str, not int: str\(name\)"),
        (("cat", "dog", "h\udcff"), r"the name h\\udcff is not valid text"),
    ],
)
def test_classes_must_be_told_apart(classes, message):
    with pytest.raises(ValueError, match=message):
        dataset(domain(targets=LABELS * 0), classes=classes)


@pytest.mark.parametrize("kind", ["photo", True, False, None])
def test_a_kind_that_there_is_not_is_refused(kind):
    """Also what stood in its place before, whether the images are photographs: they would not be augmented."""
    with pytest.raises(
        ValueError, match=f"data set mine: kind must be photographs or small_images or vectors, not {kind!r}"
    ):
        dataset(domain(), kind=kind)


@pytest.mark.parametrize("images", [IMAGES[:, :1], IMAGES[:, :, :, :5], IMAGES.repeat(2, 1)])
def test_photographs_are_square_and_in_colour(images):
    assert dataset(domain(), kind="photographs").input_shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"photographs must have \(3, side, side\): .*inputs\.repeat\(3, axis=1\)"):
        dataset(domain(inputs=images), kind="photographs")
    assert dataset(domain(inputs=images)).kind == "small_images"


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"data set m\\udcff: the name m\\udcff is not valid text"):
        dataset(domain(), name="m\udcff")


def test_mapped_images_are_not_read(tmp_path):
    """Of a file with a hole of a terabyte, which would take minutes to read."""
    shape = (2**20, 1, 1024, 1024)
    with (tmp_path / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 2**40)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    art = domain(inputs=images, targets=np.arange(2**20) % 3)
    assert len(dataset(art, replace(art, name="photo")).domains[1]) == 2**20


VECTORS = RANDOM.normal(size=(6, 4)).astype(np.float32)
HEIGHTS = RANDOM.normal(170, 10, 6).astype(np.float32)


def table(name="clinic", **changes):
    return Domain(**{"name": name, "inputs": VECTORS, "targets": LABELS, **changes})


def test_vectors_of_each_task_are_taken():
    assert dataset(table(), kind="vectors").input_shape == (4,)
    assert dataset(table(targets=HEIGHTS), kind="vectors", task="regression", classes=("height",)).task == "regression"
    several = np.eye(3, dtype=np.int64)[LABELS]
    assert dataset(table(targets=several), kind="vectors", task="multilabel").domains[0].targets.shape == (6, 3)
    assert dataset(domain(targets=HEIGHTS), task="regression", classes=("height",)).input_shape == (3, 8, 8)


def _with(place, value, array=VECTORS):
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({}, {"kind": "small_images"}, r"must be uint8 from 0 to 255, not float32: .*; or make the kind vectors"),
        ({"inputs": IMAGES}, {}, r"must be float32, not uint8: inputs\.astype\(np\.float32\); or make the kind"),
        ({"inputs": _with((2, 1), np.inf)}, {}, r"row 2 of domain clinic is infinite in place \(1,\); write NaN"),
        (
            {"inputs": _with((2, 1), -np.inf)},
            {"columns": tuple(map(Column, "abcd"))},
            "row 2 of domain clinic is infinite in column b",
        ),
        ({}, {"columns": (Column("a"),)}, r"it names 1 columns, and its inputs have shape \(4,\)"),
        (
            {"inputs": _with((1, 0, 3), np.nan, VECTORS[:, None])},
            {},
            r"row 1 of domain clinic holds NaN; only vectors \(n, size\) may lack values",
        ),
        ({"targets": HEIGHTS}, {}, "targets of domain clinic must be int64 for classification, not float32"),
        ({}, {"task": "regression", "classes": ("height",)}, "must be float32 for regression, not int64"),
        (
            {"targets": _with(3, np.nan, HEIGHTS)},
            {"task": "regression", "classes": ("height",)},
            "row 3 of domain clinic has the target nan; leave it out",
        ),
        ({"targets": HEIGHTS}, {"task": "regression"}, "it names 3 quantities; a regression is of one"),
        ({}, {"task": "multilabel"}, r"must have shape \(n, 3\), one per label, not \(6,\)"),
        (
            {"targets": 2 * np.eye(3, dtype=np.int64)[LABELS]},
            {"task": "multilabel"},
            "are from 0 to 2; write 1 where a label applies, else 0",
        ),
        ({"targets": np.eye(3, dtype=np.int64)[LABELS]}, {}, r"must have shape \(6,\), one per row, not \(6, 3\)"),
        ({}, {"task": "ranking"}, "task must be classification or multilabel or regression, not 'ranking'"),
    ],
)
def test_inputs_and_targets_must_go_with_kind_and_task(given, changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(table(**given), **{"kind": "vectors", **changes})
