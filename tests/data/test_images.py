import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import Resize

from shiftproof.data import ImageError, decode, to_pixels
from shiftproof.data.images import SUFFIXES, is_image

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_decode_resizes_as_torchvision_resizes_pillow_images(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    expected = np.asarray(Resize((16, 16))(Image.fromarray(PIXELS)))
    decoded = decode(tmp_path / "image.png", 16)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_decode_converts_every_common_mode_as_pillow_does(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / f"image.{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"image.{suffix}").convert("RGB"))
    decoded = decode(tmp_path / f"image.{suffix}", 40)
    assert decoded.shape == (3, 40, 40)
    np.testing.assert_allclose(decoded.mean((1, 2)), expected.mean((0, 1)), atol=1.5)


def test_decode_gets_the_colours_of_a_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    red, green, blue = decode(tmp_path / "red.jpg", 8)[:, 4, 4]
    assert red > 200
    assert max(green, blue) < 60


def test_decode_drops_transparency_without_a_warning(tmp_path, recwarn):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "palette.png", transparency=b"\xff\x00")
    assert decode(tmp_path / "palette.png", 4)[:, 0, 0].tolist() == [10, 200, 30]
    assert not recwarn


def test_decode_scales_16_bits_to_8(tmp_path):
    values = np.repeat([[0, 255, 32768, 65535]], 4, axis=0).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", 4)[:, 0].tolist() == [[0, 1, 128, 255]] * 3


def test_decode_to_one_channel(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    expected = np.asarray(Image.fromarray(PIXELS).convert("L").resize((10, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(tmp_path / "image.png", 10, channels=1)[0], expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_a_picture_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    """As Pillow's own function does; the two halves and thirds of the picture tell all eight apart."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :, 0] = 255
    pixels[:, :8, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(file, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(file) as image:
        expected = Resize((16, 16))(ImageOps.exif_transpose(image.convert("RGB")))
        np.testing.assert_array_equal(decode(file, 16).transpose(1, 2, 0), np.asarray(expected))
        np.testing.assert_array_equal(to_pixels(image, 16).transpose(1, 2, 0), np.asarray(expected))
    corner = {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[orientation]  # where the first pixel is seen
    seen = decode(file, 16)[:2, [0, 0, -1, -1], [0, -1, -1, 0]]
    assert seen.min(axis=0).argmax() == corner


def test_a_picture_whose_orientation_cannot_be_read_is_taken_as_it_is(tmp_path):
    upright = tmp_path / "image.jpg"
    Image.fromarray(PIXELS).save(upright)
    for exif in (b"Exif\0\0no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        Image.fromarray(PIXELS).save(tmp_path / "damaged.jpg", exif=exif)
        np.testing.assert_array_equal(decode(tmp_path / "damaged.jpg", 16), decode(upright, 16))


def test_suffixes_are_those_of_torchvision():
    assert SUFFIXES == IMG_EXTENSIONS
    assert is_image("A.JPG")
    assert not is_image("a.jpg.txt")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_decode_refuses_a_truncated_image(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"half.{suffix}: .*truncated") as caught:
        decode(path, 8)
    assert caught.value.path == path


def test_decode_refuses_an_empty_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty.jpg: the file is empty"):
        decode(tmp_path / "empty.jpg", 8)


def test_decode_refuses_a_file_that_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("no image at all")
    with pytest.raises(ImageError, match=r"text.jpg: not an image"):
        decode(tmp_path / "text.jpg", 8)


def test_decode_refuses_a_mode_of_unknown_range(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float.tif: images of mode F are not supported"):
        decode(tmp_path / "float.tif", 8)


def test_decode_refuses_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"gone.jpg: .*No such file"):
        decode(tmp_path / "gone.jpg", 8)


def test_a_picture_is_taken_as_its_file_is_and_in_colour_unless_asked(tmp_path):
    picture = Image.fromarray(PIXELS)
    picture.save(tmp_path / "image.png")
    np.testing.assert_array_equal(to_pixels(picture, 16), decode(tmp_path / "image.png", 16))
