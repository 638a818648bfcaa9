"""The ways of changing photographs: RandAugment's operations are torchvision's, and draws depend on their key."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from shiftproof.base.registry import UnknownNameError
from shiftproof.data import AUGMENTATIONS, Augmentation
from shiftproof.data.augmentation import augment
from shiftproof.data.randaugment import OPERATIONS, STRENGTH, _changed, draw_randaugmentations, randaugment

THEIRS = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "saturation": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


def images(count, size=32):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_and_strengths_are_torchvisions(operation, sign):
    batch, theirs = images(3, 40), RandAugment()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[THEIRS[operation]]
    values = magnitudes(31, 40, 40)
    strength = 0.0 if values is None else float(values[9]) * (sign if signed else 1)
    expected = theirs._apply_image_or_video_transform(
        batch, THEIRS[operation], strength, interpolation=InterpolationMode.NEAREST, fill={}
    )
    difference = _changed(batch, operation, sign * STRENGTH).int() - expected.int()
    assert difference.abs().max() <= 1  # torchvision rounds strengths to float32


def test_all_of_torchvisions_operations_are_there():
    assert set(THEIRS.values()) == set(RandAugment._AUGMENTATION_SPACE)
    assert tuple(THEIRS) == OPERATIONS


def test_a_batch_is_changed_as_its_pictures_are_alone():
    batch, draws = images(40), draw_randaugmentations(40, 32, 0, 3, 1)
    together = randaugment(batch, draws)
    assert together.dtype == torch.float32
    for i in range(40):
        assert torch.equal(randaugment(batch[i : i + 1], draws[i : i + 1])[0], together[i])
    cropped = (augment(batch, draws.crops) * 255).round().to(torch.uint8)
    for i in range(10):
        one = cropped[i : i + 1]
        for operation, sign in zip(draws.operations[i], draws.signs[i], strict=True):
            one = _changed(one, OPERATIONS[operation], sign * STRENGTH)
        assert torch.equal(one[0].float() / 255, together[i])


def test_draws_depend_on_their_key_alone():
    few, many = draw_randaugmentations(5, 32, 7, 2, 1), draw_randaugmentations(50, 32, 7, 2, 1)[:5]
    np.testing.assert_array_equal(few.operations, many.operations)
    np.testing.assert_array_equal(few.signs, many.signs)
    np.testing.assert_array_equal(few.crops.boxes, many.crops.boxes)
    assert not np.array_equal(few.operations, draw_randaugmentations(5, 32, 7, 3, 1).operations)
    drawn = draw_randaugmentations(20_000, 32, 0, 1, 0)
    shares = np.bincount(drawn.operations.ravel(), minlength=14) / drawn.operations.size
    assert shares == pytest.approx(1 / 14, abs=0.005)
    assert (drawn.signs == 1).mean() == pytest.approx(0.5, abs=0.01)


def test_none_leaves_pictures_as_they_are():
    batch, nothing = images(4), AUGMENTATIONS["none"]
    draws = nothing.draw(4, 32, 0, 1, 0)
    assert torch.equal(nothing.apply(batch[1:3], draws[1:3]), batch[1:3].float() / 255)


def test_what_is_no_augmentation_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown augmentation 'randaug'\. Did you mean randaugment"):
        AUGMENTATIONS["randaug"]
    with pytest.raises(ValueError, match="draw of Augmentation must take 5 arguments"):
        Augmentation(lambda count: None, lambda images, draws: images)
