"""Files of class vectors: what is read of them, and what is refused with the file and the names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shiftproof.base.field_error import FieldError
from shiftproof.data import DATASETS, read_class_vectors

VECTORS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def _file(tmp_path, vectors=VECTORS, classes=("a", "b", "c"), tensor="vectors", text=None):
    path = tmp_path / "classes.safetensors"
    save_file({tensor: vectors}, path, {"classes": json.dumps(classes) if text is None else text})
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_rows_are_put_in_the_order_of_the_classes(dtype, tmp_path):
    read = read_class_vectors(_file(tmp_path, VECTORS.to(dtype)))
    assert read.classes == ("a", "b", "c")
    ordered = read.of(("c", "a", "b"))
    assert ordered.classes == ("c", "a", "b")
    assert ordered.vectors.dtype == np.float32
    assert ordered.vectors.tolist() == [[5, 6], [1, 2], [3, 4]]
    assert ordered.fingerprint == read.fingerprint


def test_the_fingerprint_is_of_the_content(tmp_path):
    first = read_class_vectors(_file(tmp_path)).fingerprint
    assert read_class_vectors(_file(tmp_path)).fingerprint == first
    assert read_class_vectors(_file(tmp_path, VECTORS + 1)).fingerprint != first
    assert read_class_vectors(_file(tmp_path, classes=("b", "a", "c"))).fingerprint != first


def test_classes_that_are_missing_or_unknown_are_named(tmp_path):
    path = _file(tmp_path)
    with pytest.raises(FieldError, match=f"{path} has no vector of d, e; has vectors of unknown classes a, c"):
        read_class_vectors(path).of(("b", "d", "e"))
    with pytest.raises(FieldError, match=r"classes.safetensors has vectors of unknown classes c$"):
        read_class_vectors(path).of(("a", "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor": "text"}, "holds no tensor 'vectors' of shape"),
        ({"vectors": VECTORS[0]}, "holds no tensor 'vectors' of shape"),
        ({"vectors": VECTORS.long()}, "holds no tensor 'vectors' of shape"),
        ({"classes": ("a", "b")}, "must state the names of its 3 classes"),
        ({"classes": ("a", "b", "b")}, "must state the names of its 3 classes, all different"),
        ({"text": "a b c"}, "as a JSON list under 'classes' in its metadata"),
        ({"text": '{"a": 1, "b": 2, "c": 3}'}, "as a JSON list"),
        ({"text": "[1, 2, 3]"}, "as a JSON list"),
        ({"vectors": VECTORS * torch.tensor([[1.0], [0.0], [1.0]])}, "finite and not zero, unlike that of b"),
        ({"vectors": VECTORS + torch.tensor([[0.0], [0.0], [torch.nan]])}, "finite and not zero, unlike that of c"),
        ({"vectors": VECTORS * torch.tensor([[torch.inf], [1.0], [1.0]])}, "finite and not zero, unlike that of a"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(changes, message, tmp_path):
    with pytest.raises(FieldError, match=message) as error:
        read_class_vectors(_file(tmp_path, **changes))
    assert str(tmp_path / "classes.safetensors") in str(error.value)
    assert error.value.field == "class_vectors"


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(FieldError, match="there is no file of class vectors"):
        read_class_vectors(tmp_path / "none.safetensors")
    path = _file(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FieldError, match="is not an intact safetensors file"):
        read_class_vectors(path)
    save_file({"vectors": VECTORS}, path)
    with pytest.raises(FieldError, match="must state the names of its 3 classes"):
        read_class_vectors(path)


def test_a_data_set_takes_only_vectors_of_its_classes_in_their_order(tmp_path):
    digits = DATASETS["rotated_digits"].open(None, None)
    path = _file(tmp_path, torch.rand(10, 4), digits.classes[::-1])
    read = read_class_vectors(path)
    assert replace(digits, class_vectors=read.of(digits.classes)).class_vectors.classes == digits.classes
    with pytest.raises(ValueError, match="its class vectors are not of its classes, in their order"):
        replace(digits, class_vectors=read)
