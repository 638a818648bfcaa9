"""Data sets from arrays, from torch and from Hugging Face: exact contents, remedies, fingerprints, and a study."""

import io
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from plugin_files import forgotten
from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import main
from shiftproof.data import Column, from_arrays, from_huggingface, from_torch, to_pixels
from studies.outputs import rows_of

GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "data_from_python.md"
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def _pictures(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def _two(inputs, targets=(0, 1, 0, 1), **options):
    """A data set whose two domains have the same rows."""
    return from_arrays("mine", {"a": (inputs, targets), "b": (inputs, targets)}, **options)


# Arrays


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int16", "int64", "uint8", "bool"])
def test_numbers_become_vectors_of_float32(dtype):
    given = VECTORS.astype(dtype)
    dataset = _two(given)
    assert dataset.kind == "vectors"
    assert dataset.domains[0].inputs.dtype == np.float32
    assert dataset.domains[0].inputs.dtype.isnative
    np.testing.assert_array_equal(dataset.domains[0].inputs, given.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_tensors_are_taken_as_arrays_are(dtype):
    given = torch.from_numpy(VECTORS).to(dtype)
    if dtype.is_floating_point:
        given.requires_grad_()
    dataset = _two(given, torch.tensor([0, 1, 0, 1], dtype=torch.uint8))
    np.testing.assert_array_equal(dataset.domains[1].inputs, VECTORS)
    assert dataset.domains[1].targets.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((4, 3, 64, 64), "small_images"),
        ((4, 3, 65, 65), "photographs"),
        ((4, 3, 65, 80), "small_images"),
        ((4, 1, 90, 90), "small_images"),
        ((4, 4, 90, 90), "small_images"),
    ],
)
def test_the_kind_of_pictures_is_inferred_or_given(shape, kind):
    pictures = _pictures(*shape)
    dataset = _two(pictures)
    assert dataset.kind == kind
    assert dataset.domains[0].inputs is pictures
    assert _two(pictures, kind="small_images").kind == "small_images"


@pytest.mark.parametrize(
    ("targets", "options", "expected", "classes"),
    [
        ([0, 1, 0, 1], {}, [0, 1, 0, 1], ("0", "1")),
        (np.array([3, 1, 10, 1], dtype=np.uint8), {}, [1, 0, 2, 0], ("1", "3", "10")),
        ([True, False, True, True], {}, [1, 0, 1, 1], ("0", "1")),
        ([[1], [0], [0], [2]], {}, [1, 0, 0, 2], ("0", "1", "2")),
        (["dog", "cat", "dog", "cat"], {}, [1, 0, 1, 0], ("cat", "dog")),
        (np.array(["b", "a"] * 2, dtype=object), {"classes": ["b", "a", "c"]}, [0, 1] * 2, ("b", "a", "c")),
        ([0, 2, 0, 0], {"classes": np.array(["x", "y", "z"])}, [0, 2, 0, 0], ("x", "y", "z")),
        ([1, 2, 3, 4], {"task": "regression"}, [1, 2, 3, 4], ("target",)),
        ([[1.5], [2], [3], [4]], {"task": "regression", "classes": ["price"]}, [1.5, 2, 3, 4], ("price",)),
        (np.eye(4, 2, dtype=bool), {"task": "multilabel"}, np.eye(4, 2), ("0", "1")),
        (np.eye(4, 2), {"task": "multilabel", "classes": ["s", "t"]}, np.eye(4, 2), ("s", "t")),
    ],
)  # fmt: skip
def test_targets_are_converted_where_nothing_is_lost(targets, options, expected, classes):
    dataset = _two(VECTORS, targets, **options)
    found = dataset.domains[0].targets
    assert found.dtype == (np.float32 if options.get("task") == "regression" else np.int64)
    np.testing.assert_array_equal(found, expected)
    assert dataset.classes == classes
    assert {type(name) for name in dataset.classes} == {str}


def test_classes_are_those_of_all_domains():
    rows = np.zeros((2, 1))
    dataset = from_arrays("mine", {"a": (rows, ["x", "z"]), "b": (rows, ["z", "y"])})
    assert dataset.classes == ("x", "y", "z")
    assert [domain.targets.tolist() for domain in dataset.domains] == [[0, 2], [2, 1]]
    assert dataset.domain_names == ("a", "b")


def test_groups_and_columns():
    groups = {"a": ["p", "q", "p", "r"], "b": np.array([5, 5, 7, 7], dtype=np.uint8)}
    dataset = _two(VECTORS, groups=groups, columns=["age", Column("sex", ("f", "m")), "size"])
    assert [domain.groups.tolist() for domain in dataset.domains] == [[0, 1, 0, 2], [5, 5, 7, 7]]
    assert {domain.groups.dtype for domain in dataset.domains} == {np.dtype(np.int64)}
    assert dataset.columns == (Column("age"), Column("sex", ("f", "m")), Column("size"))


MASKED = np.ma.masked_equal(VECTORS, 5)
BIG = 2**24 + 1


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (_pictures(4, 3, 8, 8) / 255, [0, 1] * 2, {}, r"domain a look like pictures .*\(inputs \* 255\)\.round"),
        (_pictures(4, 3, 8, 8, dtype=np.int64), [0, 1] * 2, {}, r"domain a must be uint8 .* inputs.astype\(np.uint8\)"),
        (_pictures(4, 3, 8, 8) / 255, [0, 1] * 2, {"kind": "small_images"}, r"domain a must be uint8 .*\* 255"),
        (_pictures(4, 8, 8, 3), [0, 1] * 2, {}, r"domain a .*inputs.transpose\(0, 3, 1, 2\)"),
        (_pictures(4, 8, 8), [0, 1] * 2, {}, r"domain a .*inputs\[:, None\] for grey ones"),
        (VECTORS[:, 0], [0, 1] * 2, {}, r"domain a .*inputs\[:, None\] for one feature"),
        (VECTORS.astype(str), [0, 1] * 2, {}, "inputs of domain a must be numbers, not <U32"),
        (VECTORS * 1j, [0, 1] * 2, {}, "inputs of domain a must be numbers, not complex64"),
        (np.full((4, 1), 1e300), [0, 1] * 2, {}, "domain a: row 0 holds 1e.300, which is too large for float32"),
        (np.array([[0], [0], [BIG], [0]]), [0, 1] * 2, {}, f"inputs of domain a: row 2 holds {BIG}, which is beyond"),
        (MASKED, [0, 1] * 2, {}, r"inputs of domain a must not be masked.*inputs.filled\(np.nan\)"),
        (torch.zeros(4, 3, device="meta"), [0, 1] * 2, {}, r"domain a must be on the CPU, not on meta: inputs.cpu\(\)"),
        (torch.eye(4).to_sparse(), [0, 1] * 2, {}, r"domain a must be dense, not sparse: inputs.to_dense\(\)"),
        ([[1], [2, 3]], [0, 1], {}, "inputs of domain a cannot be made an array"),
        (7, [0, 1], {}, "inputs of domain a must be an array with a row per input, not int"),
        (VECTORS, [0, 1], {}, r"targets of domain a must have shape \(4,\)"),
        (VECTORS, [0.0, 1, 0, 1], {}, r"domain a .*not float64: targets.astype\(np.int64\).*task='regression'"),
        (VECTORS, np.array([b"x"] * 4), {}, r"domain a .*targets.astype\(str\)"),
        (VECTORS, ["x", None, "y", "x"], {}, "targets of domain a: row 1 is None, and no text"),
        (VECTORS, [0, -1, 1, 0], {}, "targets of domain a are negative: leave out rows without a class"),
        (VECTORS, [1, 2, 1, 2], {"classes": ["x", "y"]}, "targets of domain a are from 1 to 2, .* count from 0"),
        (VECTORS, np.eye(4, dtype=int), {}, r"domain a .*targets.argmax\(axis=1\)"),
        (VECTORS, np.full(4, 2**63, dtype=np.uint64), {}, "targets of domain a hold 9223372036854775808"),
        (VECTORS, [0, 1, 0, np.nan], {"task": "regression"}, "row 3 of domain a has the target nan"),
        (VECTORS, ["1"] * 4, {"task": "regression"}, "targets of domain a must be numbers for regression, not <U1"),
        (VECTORS, np.full((4, 2), 0.5), {"task": "multilabel"}, "targets of domain a: row 0 holds 0.5; write 1 where"),
        (VECTORS, [0, 1] * 2, {"task": "multilabel"}, r"targets of domain a must have shape \(4, labels\)"),
        (np.zeros((0, 3)), [], {}, "inputs of domain a hold no rows; leave the domain out"),
        (VECTORS, [0, 1] * 2, {"groups": {"a": [1, 2, 3, 4]}}, "domain b has no groups"),
        (VECTORS, [0, 1] * 2, {"groups": {"a": [0.5] * 4, "b": [1] * 4}}, "groups of domain a must be int64"),
        (VECTORS, [0, 1] * 2, {"classes": "price"}, r"classes must be names, as in \('price',\)"),
        (VECTORS, [0, 1] * 2, {"columns": ["x"]}, "names 1 columns"),
    ],
)  # fmt: skip
def test_what_would_lose_something_is_refused_in_one_line_with_the_remedy(inputs, targets, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        _two(inputs, targets, **options)
    assert "\n" not in str(raised.value)


def test_names_that_are_not_known_have_near_ones():
    with pytest.raises(UnknownNameError, match=r"unknown class of domain a 'dgo'. Did you mean dog"):
        _two(VECTORS, ["dog", "dgo"] * 2, classes=["cat", "dog"])
    with pytest.raises(UnknownNameError, match=r"unknown domain with groups 'aa'. Did you mean a"):
        _two(VECTORS, groups={"aa": [1] * 4})
    with pytest.raises(UnknownNameError, match=r"unknown task 'clasification'. Did you mean classification"):
        _two(VECTORS, task="clasification")
    with pytest.raises(UnknownNameError, match=r"unknown kind 'vector'. Did you mean vectors"):
        _two(VECTORS, kind="vector")


@pytest.mark.parametrize("domains", [{}, [("a", (VECTORS, [0, 1] * 2))]])
def test_domains_are_named(domains):
    with pytest.raises(ValueError, match="data set mine: domains must be a dict"):
        from_arrays("mine", domains)


def test_a_domain_is_a_pair():
    with pytest.raises(ValueError, match=r"domain a must be a pair \(inputs, targets\), not ndarray"):
        from_arrays("mine", {"a": VECTORS})


def test_texts_and_numbers_are_not_mixed():
    with pytest.raises(ValueError, match="targets of domain b are texts, those of domain a numbers"):
        from_arrays("mine", {"a": (VECTORS, [0, 1, 0, 1]), "b": (VECTORS, ["x", "y"] * 2)})


@pytest.mark.parametrize("rows", [_pictures(6, 3, 80, 80), np.tile(VECTORS, (3, 1))])
def test_what_is_mapped_from_a_file_is_not_copied(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("shiftproof.data.arrays._HASHED_AT_ONCE", 2 * rows[0].nbytes)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    labels = np.arange(len(rows)) % 2
    dataset = _two(mapped, labels)
    assert all(np.shares_memory(domain.inputs, mapped) for domain in dataset.domains)
    assert not dataset.domains[0].inputs.flags.writeable
    monkeypatch.undo()
    assert dataset.fingerprint == _two(rows, labels).fingerprint  # in however many blocks


def test_the_fingerprint_is_of_the_content_whatever_holds_it():
    known = _two(VECTORS, ["x", "y"] * 2).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", known)
    for inputs in (torch.from_numpy(VECTORS), VECTORS.tolist(), VECTORS.astype(np.float64), np.asfortranarray(VECTORS)):
        assert _two(inputs, ["x", "y"] * 2).fingerprint == known
    assert _two(VECTORS, [0, 1] * 2, classes=["x", "y"]).fingerprint == known
    assert _two(VECTORS, np.array(["x", "y"] * 2), classes=np.array(["x", "y"])).fingerprint == known


def test_the_fingerprint_differs_where_anything_differs():
    changed = VECTORS.copy()
    changed[3, 2] += 1
    groups = {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    pictures = _pictures(4, 3, 80, 80)
    pair = (VECTORS, [0, 1, 0, 1])
    datasets = [
        _two(VECTORS),
        _two(changed),
        _two(VECTORS, [0, 1, 1, 1]),
        _two(VECTORS, classes=["x", "y"]),
        _two(VECTORS, classes=["x", "y", "z"]),
        _two(VECTORS.reshape(4, 3, 1)),
        _two(VECTORS, task="regression"),
        _two(VECTORS, groups=groups),
        _two(VECTORS, columns=["x", "y", "z"]),
        from_arrays("mine", {"b": pair, "a": pair}),
        from_arrays("mine", {"a": pair, "c": pair}),
        from_arrays("mine", {"a": pair}),
        _two(pictures),
        _two(pictures, kind="small_images"),
    ]
    assert len({dataset.fingerprint for dataset in datasets}) == len(datasets)


# Data sets of torch


def _image(side, mode="RGB", seed=0):
    size = (side, side) if isinstance(side, int) else side
    channels = {"RGB": (3,), "L": ()}[mode]
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8))


def _shots(*images):
    return [(image, i % 2) for i, image in enumerate(images)]


CYCLE = ["b", "a"]


def test_pictures_of_one_size_are_kept_and_dealt_to_their_domains():
    images = [_image((12, 9), seed=i) for i in range(6)]
    dataset = from_torch("mine", _shots(*images), domain=CYCLE * 3, classes=["x", "y"])
    assert (dataset.domain_names, dataset.kind, dataset.classes) == (("a", "b"), "small_images", ("x", "y"))
    for domain, numbers in zip(dataset.domains, ([1, 3, 5], [0, 2, 4]), strict=True):
        expected = np.stack([np.asarray(images[i]).transpose(2, 0, 1) for i in numbers])
        np.testing.assert_array_equal(domain.inputs, expected)
        assert domain.targets.tolist() == [i % 2 for i in numbers]


def test_pictures_are_resized_as_those_of_a_folder():
    images = [_image((30 + i, 20), seed=i) for i in range(4)]
    tensors = [torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) for image in images]
    options = {"domain": CYCLE * 2, "image_size": 70}
    dataset = from_torch("mine", _shots(*images), **options)
    assert dataset.kind == "photographs"
    np.testing.assert_array_equal(dataset.domains[1].inputs[1], to_pixels(images[2], 70))
    assert from_torch("mine", _shots(*tensors), **options).fingerprint == dataset.fingerprint


def test_grey_pictures_stay_grey_unless_others_are_in_colour():
    grey, colour = _image(8, "L"), _image(8)
    alone = from_torch("mine", _shots(*[grey] * 4), domain=CYCLE * 2)
    assert alone.input_shape == (1, 8, 8)
    for order in ([grey, colour, grey, grey], [colour, grey, grey, grey]):
        mixed = from_torch("mine", _shots(*order), domain=["a", "a", "b", "b"])
        assert mixed.input_shape == (3, 8, 8)
        np.testing.assert_array_equal(mixed.domains[1].inputs[0], np.asarray(grey)[None].repeat(3, axis=0))
    assert from_torch("mine", _shots(*[grey] * 4), domain=CYCLE * 2, kind="photographs").input_shape == (3, 8, 8)


def test_vectors_and_any_targets():
    vectors, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    asked = []

    def domain(index, item):
        asked.append((index, item[1].item()))
        return f"d{index // 3}"

    dataset = from_torch("mine", TensorDataset(vectors, labels), domain=domain)
    arrays = {"d0": (vectors[:3], labels[:3]), "d1": (vectors[3:], labels[3:])}
    assert dataset.fingerprint == from_arrays("mine", arrays).fingerprint
    assert asked == list(enumerate(labels.tolist()))
    named = from_torch("mine", [(v, "xyz"[i]) for v, i in zip(vectors, labels, strict=True)], domain=CYCLE * 3)
    assert named.classes == ("x", "y", "z")
    prices = from_torch("mine", [(1.5, 2), (2, 3.5)], domain=CYCLE, task="regression")
    assert [d.targets.tolist() for d in prices.domains] == [[3.5], [2]]
    labelled = TensorDataset(vectors, torch.eye(6, 3, dtype=torch.bool))
    assert from_torch("mine", labelled, domain=CYCLE * 3, task="multilabel").domains[0].targets.shape == (3, 3)


@pytest.mark.parametrize("group", [["p", "q", "p", "r"], [7, 8, 7, 9], lambda index, item: "pqpr"[index]])
def test_items_of_a_group_are_marked(group):
    items = list(zip(VECTORS, [0, 1, 1, 0], "pqpr", strict=True))
    dataset = from_torch("mine", items, domain=CYCLE * 2, group=group)
    assert [domain.groups.tolist() for domain in dataset.domains] == [[0, 1], [0, 0]]
    assert dataset.fingerprint == from_torch("mine", items, domain=CYCLE * 2, group=lambda i, item: item[2]).fingerprint
    assert {domain.groups for domain in from_torch("mine", items, domain=CYCLE * 2).domains} == {None}


class Broken:
    """A data set whose third picture cannot be read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        content = io.BytesIO()
        _image(8).save(content, "png")
        return Image.open(io.BytesIO(content.getvalue()[: 60 if index == 2 else None])), 0


class Streamed(IterableDataset):
    def __iter__(self):
        yield from ()


class Buggy(Broken):
    def __getitem__(self, index):
        return {}["path"]


FLOATS = torch.rand(4, 3, 8, 8)
FEW = [_image(8), _image(8), _image((9, 7)), _image(8)]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (_shots(*FEW), {}, "item 2: it has 9 x 7 pixels, and item 0 has 8 x 8 pixels; give image_size"),
        (TensorDataset(FLOATS, torch.zeros(4)), {}, "item 0: its picture is float32 .* leave the transforms ToTensor"),
        (TensorDataset(FLOATS - 1, torch.zeros(4)), {}, "item 0: .* leave the transforms ToTensor and Normalize out"),
        (TensorDataset(FLOATS, torch.zeros(4)), {"kind": "small_images"}, "item 0: .* PILToTensor"),
        (TensorDataset(FLOATS[:, 0, 0], torch.zeros(4)), {"image_size": 8}, "item 0: .* image_size is for pictures"),
        (Broken(), {}, "item 2: image file is truncated|item 2: .*broken"),
        (Buggy(), {}, "item 0: KeyError: 'path'"),
        (Streamed(), {}, "data set mine must be a map-style data set of torch: Streamed has no length"),
        ([], {"domain": []}, "data set mine has no items"),
        ([(VECTORS[0], 0)] * 3 + [(VECTORS[0, :2], 0)], {}, r"item 3: its input is float32 of shape \(2,\)"),
        ([(VECTORS[0], 0)] * 3 + [(_image(8), 0)], {}, r"item 3: its input is uint8 of shape \(3, 8, 8\)"),
        ([(VECTORS[0], 0)] * 3 + [(VECTORS[0], "x")], {}, "item 3: its target is 'x', and that of item 0 0"),
        ([(VECTORS[0], 0)] * 3 + [(VECTORS[0], None)], {}, "item 3: its target is None"),
        ([VECTORS[0]] * 4, {}, "item 0: it must begin with input and target, and is ndarray"),
        ([(Image.new("F", (8, 8)), 0)] * 4, {}, "item 0: images of mode F are not supported"),
        ([(np.zeros((2, 8, 8), dtype=np.uint8), 0)] * 4, {"image_size": 9}, r"item 0: .* must have \(1 or 3, height"),
        (_shots(*FEW), {"domain": "a"}, "domain must name the domain of each of 4 items, not one text"),
        (_shots(*FEW), {"domain": ["a"]}, "domain must name the domain of each of 4 items, not 1 names"),
        (_shots(*FEW), {"group": "p"}, "group must name the group of each of 4 items, not one text"),
        (_shots(*FEW), {"group": ["p"] * 3}, "group must name the group of each of 4 items, not 3 names"),
        (_shots(*FEW), {"group": ["p", None, "p", "q"]}, "item 1: its group is None, and must be a text or a whole"),
        (_shots(*FEW), {"domain": [0, 1, 0, 1]}, r"item 0: its domain is 0, and must be a str, not int: str\(domain\)"),
    ],
)  # fmt: skip
def test_an_item_that_does_not_fit_is_named(dataset, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        from_torch("mine", dataset, **{"domain": CYCLE * 2, **options})
    assert "\n" not in str(raised.value)


# Data sets of Hugging Face


class Rows:
    """What `datasets.Dataset` has, as far as it is read: rows are of all columns, in the format it was given."""

    def __init__(self, rows, names=None, shown=lambda row: {}):
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = {
            column: SimpleNamespace(names=names[column]) if column in (names or {}) else SimpleNamespace()
            for column in rows[0]
        }
        self.shown = shown

    from_list = classmethod(lambda cls, rows: cls(rows))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.shown(self.rows[index])

    def with_format(self, form, columns):
        assert form is None
        return Rows(self.rows, shown=lambda row: {column: row[column] for column in columns})


def _bytes(image):
    content = io.BytesIO()
    image.save(content, "png")
    return {"bytes": content.getvalue(), "path": None}


def _rows(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


TABLE = {"age": [30, None, 50, 60], "sick": [True, False, True, True], "site": CYCLE * 2, "label": [0, 1, 1, 0]}
NAMED = {"label": "label", "domain": "site"}


def test_a_picture_is_one_of_pillow_or_its_bytes_or_its_path(tmp_path):
    images = [_image(8, seed=i) for i in range(4)]
    images[3].save(tmp_path / "3.png")
    forms = [images[0], _bytes(images[1]), np.asarray(images[2]).transpose(2, 0, 1).tolist()]
    rows = _rows(photo=[*forms, {"bytes": None, "path": str(tmp_path / "3.png")}], site=CYCLE * 2, label=[0, 1, 1, 0])
    dataset = from_huggingface("mine", Rows(rows), image="photo", **NAMED)
    assert dataset.domain_names == ("a", "b")
    expected = [np.asarray(images[i]).transpose(2, 0, 1) for i in (1, 3)]
    np.testing.assert_array_equal(dataset.domains[0].inputs, np.stack(expected))
    np.testing.assert_array_equal(dataset.domains[1].inputs[1], np.asarray(images[2]).transpose(2, 0, 1))


def test_columns_are_read_as_they_are_stored_and_no_others():
    class Undecodable(dict):
        def __getitem__(self, column):
            assert column != "sound"
            return super().__getitem__(column)

    rows = Rows([Undecodable(row) for row in _rows(**TABLE, sound=[b"?"] * 4)], shown=lambda row: {"age": -1})
    dataset = from_huggingface("mine", rows, features=["age", "sick"], **NAMED)
    assert (
        dataset.fingerprint
        == from_huggingface("mine", Rows(_rows(**TABLE)), features=["age", "sick"], **NAMED).fingerprint
    )


def test_columns_of_numbers_keep_their_names():
    dataset = from_huggingface("mine", Rows(_rows(**TABLE)), features=["age", "sick"], **NAMED)
    assert dataset.columns == (Column("age"), Column("sick"))
    np.testing.assert_array_equal(dataset.domains[0].inputs, np.array([[np.nan, 0], [60, 1]], dtype=np.float32))
    assert dataset.domains[1].targets.tolist() == [0, 1]


def test_a_column_whose_values_have_names_is_of_categories():
    rows = Rows(_rows(**{**TABLE, "sick": [2, 0, None, 1]}), {"sick": ["no", "yes", "maybe"]})
    dataset = from_huggingface("mine", rows, features=["age", "sick"], **NAMED)
    assert dataset.columns == (Column("age"), Column("sick", ("no", "yes", "maybe")))
    np.testing.assert_array_equal(dataset.domains[1].inputs, [[30, 2], [50, np.nan]])


@pytest.mark.parametrize("features", [["embedding"], "embedding"])
def test_a_column_of_vectors(features):
    vectors = VECTORS.tolist()
    vectors[3][1] = None
    rows = _rows(embedding=vectors, site=CYCLE * 2, label=[0, 1, 1, 0])
    dataset = from_huggingface("mine", Rows(rows), features=features, **NAMED)
    assert dataset.columns is None
    np.testing.assert_array_equal(dataset.domains[0].inputs, [VECTORS[1], [VECTORS[3, 0], np.nan, VECTORS[3, 2]]])


def test_names_of_classes_and_of_domains_are_the_columns():
    rows = Rows(_rows(**{**TABLE, "site": [1, 0, 1, 0]}), {"label": ["well", "ill", "dead"], "site": ["north", "east"]})
    dataset = from_huggingface("mine", rows, features=["age"], **NAMED)
    assert (dataset.classes, dataset.domain_names) == (("well", "ill", "dead"), ("east", "north"))
    assert dataset.domains[0].targets.tolist() == [0, 1]
    assert from_huggingface("mine", rows, features=["age"], classes=["0", "1"], **NAMED).classes == ("0", "1")
    unnamed = from_huggingface("mine", Rows(rows.rows), features=["age"], label="label", domain="site")
    assert unnamed.domain_names == ("0", "1")
    rows.features = None
    assert from_huggingface("mine", rows, features=["age"], **NAMED).classes == ("0", "1")


def test_rows_of_a_group_are_marked():
    rows = Rows(_rows(**TABLE, patient=["p", "q", "p", "r"]))
    dataset = from_huggingface("mine", rows, features=["age"], group="patient", **NAMED)
    assert [domain.groups.tolist() for domain in dataset.domains] == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (TABLE, {"features": ["aeg"]}, "unknown column 'aeg'. Did you mean age"),
        (TABLE, {"image": "photo"}, "unknown column 'photo'"),
        (TABLE, {"features": ["age"], "label": "lable"}, "unknown column 'lable'. Did you mean label"),
        (TABLE, {"features": ["age"], "domain": "sight"}, "unknown column 'sight'. Did you mean site"),
        (TABLE, {}, "give the column image or the columns features"),
        (TABLE, {"image": "age", "features": ["age"]}, "and not both"),
        (TABLE, {"features": []}, "features names no column"),
        (TABLE, {"features": ["age", "label"]}, "column label is a feature, and says the domain or the label too"),
        (TABLE, {"features": ["age"], "image_size": 8}, "image_size is for pictures"),
        ({**TABLE, "age": [1, 2, "old", 4]}, {"features": ["age"]}, "item 2: column age is 'old', and must be"),
        ({**TABLE, "age": [{"x": 1}] * 4}, {"features": ["age"]}, r"item 0: column age is \{'x': 1\}, and must be a"),
        ({**TABLE, "age": [[1.0], None, [2.0], [3]]}, {"features": ["age"]}, "item 1: column age is None, and must be"),
        ({**TABLE, "age": [_image(8)] * 4}, {"features": ["age"]}, "item 0: column age is a picture: name it as image"),
        ({**TABLE, "age": ["a.png"] * 4}, {"image": "age"}, r"item 0: column age is str, .*cast_column\('age', data"),
        ({**TABLE, "age": [b"x"] * 4}, {"image": "age"}, r"item 0: column age is bytes, and must be a picture"),
        (TABLE, {"image": "age"}, "item 0: column age is int, and must be a picture"),
        ({**TABLE, "age": [[[0, 256]]] * 4}, {"image": "age"}, r"item 0: column age is int64 of shape \(1, 2\), and"),
        ({**TABLE, "age": [[[0.5]]] * 4}, {"image": "age"}, r"item 0: column age is float64 .*numbers from 0 to 255"),
        ({**TABLE, "label": [[0, 2], [1], [], [0]]}, {"features": ["age"]}, "item 1: .*; give 1 or 0 for every label"),
        ({**TABLE, "site": ["a", None, "b", "b"]}, {"features": ["age"]}, "item 1: column site is None, and must be"),
        ({**TABLE, "age": [_image(8), None, None, None]}, {"image": "age"}, "item 1: it has no picture"),
        ({**TABLE, "age": [{"bytes": b"x", "path": None}] * 4}, {"image": "age"}, "item 0: its picture is empty or of"),
        ({**TABLE, "age": [{"bytes": None}] * 4}, {"image": "age"}, "item 0: its picture has neither bytes nor a path"),
        ({**TABLE, "age": [{"path": "no.png"}] * 4}, {"image": "age"}, "item 0: .*No such file or directory: 'no.png'"),
    ],
)  # fmt: skip
def test_a_row_or_a_column_that_does_not_fit_is_named(rows, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        from_huggingface("mine", Rows(_rows(**rows)), **{**NAMED, **options})
    assert "\n" not in str(raised.value)


def test_a_name_beyond_those_of_the_column_is_refused():
    rows = Rows(_rows(**{**TABLE, "site": [0, 1, -1, 0]}), {"site": ["north", "east"]})
    with pytest.raises(ValueError, match="item 2: column site is -1, and names 2 values, numbered from 0"):
        from_huggingface("mine", rows, features=["age"], **NAMED)


def test_splits_are_to_be_chosen():
    with pytest.raises(
        ValueError, match=r"data set mine has the parts train, test; give one of them, as dataset\['train'\]"
    ):
        from_huggingface("mine", {"train": [], "test": []}, features=["age"], **NAMED)


def test_what_is_no_data_set_of_hugging_face_is_refused():
    with pytest.raises(ValueError, match=r"data set mine must be a datasets\.Dataset, not str"):
        from_huggingface("mine", "owner/name", features=["age"], **NAMED)
    streamed = SimpleNamespace(column_names=["age", "label", "site"])
    with pytest.raises(
        ValueError, match="data set mine must be a data set of Hugging Face that is not streamed: Simple"
    ):
        from_huggingface("mine", streamed, features=["age"], **NAMED)


# The guide


def _blocks(title=""):
    text = GUIDE.read_text(encoding="utf-8")
    return re.findall(rf"```python{title}\n(.*?)```", text, re.DOTALL)


def test_python_blocks_of_the_guide_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=Rows))
    names = {}
    for block in _blocks():
        exec(block, names)  # noqa: S102
    assert names["dataset"].columns == (Column("width"),)


def test_a_study_trains_on_a_data_set_from_arrays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [plugin] = _blocks(' title="sites.py"')
    (tmp_path / "sites.py").write_text(plugin, encoding="utf-8")
    options = ["--targets", "north", "--trials", "2", "--steps", "4", "--checkpoint-freq", "2", "--jobs", "1"]
    with forgotten():
        command = ["compare", "--import", "sites.py", "--dataset", "sites", "--optimizers", "adam", "sgd", *options]
        assert main([*command, "--output", "out"]) == 0
    rows = rows_of("out")
    assert {row["status"] for row in rows} == {"finished"}
    assert Counter((row["optimizer"], row["dataset"]) for row in rows) == {("adam", "sites"): 2, ("sgd", "sites"): 2}
    printed = capsys.readouterr().out
    assert "sites" in printed
