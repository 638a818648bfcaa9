import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from shiftproof.data import Augmentations, augment, draw_augmentations
from shiftproof.data.augmentation import _adjust_hue, _crop_boxes

SIZE = 48
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
TORCHVISION = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def images(count, size=SIZE):
    """Smooth pictures with noise on half of them, uint8."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    smooth[::2] = (smooth[::2] + 0.2 * torch.randn(smooth[::2].shape, generator=random)).clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def by_torchvision(image, draw):
    """Augment one float image with the numbers of one position."""
    top, left, height, width = draw.boxes[0].tolist()
    image = functional.resized_crop(image, top, left, height, width, [draw.size, draw.size], antialias=True)
    if draw.flips[0]:
        image = functional.horizontal_flip(image)
    for column in draw.orders[0].tolist():
        image = TORCHVISION[column](image, draw.factors[0, column].item())
    return functional.rgb_to_grayscale(image, num_output_channels=3) if draw.greys[0] else image


@pytest.mark.parametrize("size", [SIZE, 112])
def test_augment_equals_torchvision_image_by_image(size):
    batch, draws = images(64, size), draw_augmentations(64, size, 0, 1, 0)
    assert draws.greys.any()
    assert len(np.unique(draws.orders, axis=0)) > 20
    expected = torch.stack([by_torchvision(image / 255, draws[i : i + 1]) for i, image in enumerate(batch)])
    torch.testing.assert_close(augment(batch, draws), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(augment(batch / 255, draws), expected, rtol=0, atol=2e-5)


def test_augment_leaves_its_input_alone():
    batch = images(8) / 255
    before = batch.clone()
    augment(batch, draw_augmentations(8, SIZE, 0, 1, 0))
    assert torch.equal(batch, before)


def test_augment_does_not_depend_on_the_rest_of_the_batch():
    batch, draws = images(24), draw_augmentations(24, SIZE, 0, 1, 0)
    together = augment(batch, draws)
    order = np.random.default_rng(0).permutation(24)
    torch.testing.assert_close(augment(batch[order], draws[order]), together[order], rtol=0, atol=1e-6)
    alone = torch.cat([augment(batch[i : i + 1], draws[i : i + 1]) for i in range(24)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    assert torch.equal(augment(batch, draws), together)


def test_augment_is_exact_under_autocast():
    batch, draws = images(8), draw_augmentations(8, SIZE, 0, 1, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = augment(batch, draws)
    assert result.dtype == torch.float32
    assert torch.equal(result, augment(batch, draws))


def test_augment_without_changes_returns_the_image():
    batch = images(2)
    nothing = Augmentations(
        size=SIZE,
        boxes=np.tile([0, 0, SIZE, SIZE], (2, 1)),
        flips=np.zeros(2, dtype=bool),
        factors=np.tile([1.0, 1, 1, 0], (2, 1)),
        orders=np.tile([3, 1, 0, 2], (2, 1)),
        greys=np.zeros(2, dtype=bool),
    )
    torch.testing.assert_close(augment(batch, nothing), batch / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [-0.5, -0.3, -1 / 6, 0.0, 0.05, 0.3, 0.5])
def test_hue_of_every_colour_equals_torchvisions(factor):
    levels = torch.linspace(0, 1, 18)  # with greys, black, white and equal channels
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 18, 324).contiguous()
    expected = functional.adjust_hue(colours, factor)
    _adjust_hue(colours, torch.tensor(factor).view(1, 1, 1, 1))
    torch.testing.assert_close(colours, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 3, SIZE, SIZE), (4, 1, SIZE, SIZE), (4, 3, SIZE, SIZE + 1)])
def test_augment_refuses_images_that_the_numbers_are_not_for(shape):
    with pytest.raises(ValueError, match="do not fit images of shape"):
        augment(torch.zeros(shape), draw_augmentations(4, SIZE, 0, 1, 0))


def test_a_position_draws_the_same_whatever_follows_it():
    few, many = draw_augmentations(5, SIZE, 3, 7, 1), draw_augmentations(50, SIZE, 3, 7, 1)[:5]
    for name in ("boxes", "flips", "factors", "orders", "greys"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name))


@pytest.mark.parametrize("key", [(1, 7, 1), (3, 8, 1), (3, 7, 2)])
def test_draws_depend_on_seed_step_and_domain(key):
    assert not np.array_equal(draw_augmentations(5, SIZE, *key).factors, draw_augmentations(5, SIZE, 3, 7, 1).factors)


def test_draws_follow_the_protocol():
    draws = draw_augmentations(20_000, 224, 0, 1, 0)
    assert draws.flips.mean() == pytest.approx(0.5, abs=0.02)
    assert draws.greys.mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(draws.factors.min(axis=0), [0.7, 0.7, 0.7, -0.3], atol=0.001)
    np.testing.assert_allclose(draws.factors.max(axis=0), [1.3, 1.3, 1.3, 0.3], atol=0.001)
    np.testing.assert_allclose(draws.factors.mean(axis=0), [1, 1, 1, 0], atol=0.01)
    orders, counts = np.unique(draws.orders, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 700  # 833 expected


def test_crops_are_distributed_as_torchvisions():
    boxes = draw_augmentations(4000, 224, 0, 1, 0).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 224).all()
    crop = v2.RandomResizedCrop(224, scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3))
    torch.manual_seed(0)
    image = torch.zeros(3, 224, 224)
    theirs = np.array(
        [[p["top"], p["left"], p["height"], p["width"]] for p in (crop.make_params([image]) for _ in range(4000))]
    )
    np.testing.assert_allclose(boxes.mean(axis=0), theirs.mean(axis=0), atol=1)
    np.testing.assert_allclose(np.quantile(boxes, QUANTILES, 0), np.quantile(theirs, QUANTILES, 0), atol=3)


def test_where_no_crop_fits_the_whole_image_is_taken():
    widest = np.ones((1, 10))
    assert _crop_boxes(widest, widest, np.full((1, 2), 0.9), 100).tolist() == [[0, 0, 100, 100]]


def test_draws_golden():
    draws = draw_augmentations(2, 224, 0, 1, 0)
    assert draws.boxes.tolist() == [[2, 3, 216, 172], [13, 14, 204, 182]]
    assert draws.flips.tolist() == [True, True]
    assert draws.orders.tolist() == [[3, 1, 2, 0], [0, 2, 1, 3]]
    expected = [1.0959491799603798, 0.7696012220638375, 0.77614412614085, 0.026161393225915017]
    np.testing.assert_allclose(draws.factors[0], expected, rtol=0, atol=1e-15)


@pytest.mark.cuda
def test_augment_on_a_gpu_equals_the_cpu():
    batch, draws = images(64), draw_augmentations(64, SIZE, 0, 1, 0)
    on_gpu = augment(batch.cuda(), draws)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), augment(batch, draws), rtol=0, atol=2e-5)
