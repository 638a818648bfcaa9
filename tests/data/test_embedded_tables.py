"""The tables in the package: the published counts, what is missing, and nothing that gives the answer away."""

from collections import Counter

import numpy as np
import pytest

from shiftproof.base.field_error import FieldError
from shiftproof.data import DATASETS


def test_vowels_has_fifteen_speakers_of_eleven_vowels_six_times_each():
    vowels = DATASETS["vowels"].open(None, None)
    assert vowels.domain_names == tuple(f"speaker{number:02}" for number in range(15))
    assert (vowels.kind, vowels.task, len(vowels.classes), vowels.input_shape) == (
        "vectors",
        "classification",
        11,
        (10,),
    )
    for domain in vowels.domains:
        assert np.bincount(domain.targets, minlength=11).tolist() == [6] * 11
        assert np.isfinite(domain.inputs).all()
    first = vowels.domains[2]
    assert first.inputs[0] == pytest.approx([-2.704, 1.285, -0.908, 1.570, -0.840, 1.044, -0.399, 0.951, 0.345, -0.695])
    assert vowels.classes[first.targets[0]] == "hed"


def test_heart_disease_has_the_published_counts_and_shares():
    heart = DATASETS["heart_disease"].open(None, None)
    assert dict(zip(heart.domain_names, map(len, heart.domains), strict=True)) == {
        "cleveland": 303,
        "hungary": 294,
        "switzerland": 123,
        "va_long_beach": 200,
    }
    shares = [domain.targets.mean() for domain in heart.domains]
    assert (min(shares), max(shares)) == pytest.approx((0.36, 0.94), abs=0.006)
    names = [column.name for column in heart.columns]
    assert " ".join(names) == "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal"
    assert Counter(bool(column.categories) for column in heart.columns) == {True: 7, False: 6}


def test_a_cholesterol_of_zero_is_missing():
    heart = DATASETS["heart_disease"].open(None, None)
    place = [column.name for column in heart.columns].index("chol")
    missing = {domain.name: int(np.isnan(domain.inputs[:, place]).sum()) for domain in heart.domains}
    assert (missing["switzerland"], missing["cleveland"]) == (123, 0)
    assert missing["va_long_beach"] >= 49
    known = np.concatenate([domain.inputs[:, place] for domain in heart.domains])
    assert np.nanmin(known) > 0


@pytest.mark.parametrize("name", ["vowels", "heart_disease"])
def test_options_of_folders_and_pictures_are_refused(name, tmp_path):
    with pytest.raises(FieldError, match=f"{name} is embedded: it takes no data folder"):
        DATASETS[name].open(tmp_path, None)
    with pytest.raises(FieldError, match=f"{name} has no pictures: it takes no image size"):
        DATASETS[name].open(None, 32)
