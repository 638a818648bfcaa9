import pytest
from PIL import Image

from shared_data import PACS, SHARED
from shiftproof.data import DATASETS, KINDS, look_at_folder, open_folder
from shiftproof.data.kinds import LOOKED_AT, look_at

SPOKEN_DIGITS = SHARED / "data" / "SpokenDigits"


def _write(folder, sizes, mode="RGB", suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (width, height) in enumerate(sizes):
        paths.append(folder / f"{i}.{suffix}")
        Image.new(mode, (width, height), 3 if mode in ("1", "L", "I;16", "P") else None).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("sizes", "mode", "kind", "small_size"),
    [
        ([(28, 28)], "L", "small_images", 28),
        ([(32, 32)], "RGB", "small_images", 32),
        ([(20, 64), (30, 30)], "RGB", "small_images", 64),
        ([(20, 65), (30, 30)], "RGB", "photographs", 64),
        ([(105, 105)], "1", "small_images", 64),  # Omniglot's characters
        ([(128, 40)], "L", "small_images", 64),
        ([(128, 40)], "I;16", "small_images", 64),
        ([(129, 40)], "L", "photographs", 64),  # an X-ray
        ([(128, 128)], "RGB", "photographs", 64),
        ([(128, 128)], "P", "photographs", 64),
    ],
)
def test_sizes_and_channels_tell_the_kind(tmp_path, sizes, mode, kind, small_size):
    look = look_at(_write(tmp_path, sizes, mode))
    assert look.kind == kind
    assert look.small_size == small_size


def test_colour_among_grey_makes_photographs_of_what_is_above_64_pixels(tmp_path):
    grey, colour = _write(tmp_path / "a", [(100, 100)] * 3, "L"), _write(tmp_path / "b", [(100, 100)], "RGB")
    assert look_at(grey).kind == "small_images"
    assert look_at(grey + colour).kind == "photographs"


def test_the_look_is_told_in_words(tmp_path):
    paths = _write(tmp_path, [(20, 30), (28, 28)], "L")
    assert look_at(paths).text == "2 of 2 files looked at, up to 20 x 30 pixels, grey"  # the longest side decides
    assert look_at(paths[1:]).text == "1 of 1 files looked at, 28 x 28 pixels, grey"


def test_files_are_looked_at_all_over_a_long_list(tmp_path):
    small, large = _write(tmp_path / "s", [(9, 9)])[0], _write(tmp_path / "l", [(200, 90)])[0]
    assert look_at([small] * 5000 + [large] * 100).kind == "photographs"
    assert look_at([large] * 100 + [small] * 5000).kind == "photographs"
    assert look_at([small] * 5000).text.startswith(f"{LOOKED_AT} of 5,000 files")


def test_what_cannot_be_read_is_passed_over(tmp_path):
    paths = _write(tmp_path, [(9, 9)] * 2)
    paths[0].write_bytes(b"")
    assert look_at(paths).kind == "small_images"
    paths[1].write_text("no picture")
    assert look_at(paths).kind == "photographs"  # decoding names them


def test_a_folder_is_opened_at_the_size_of_its_kind(tmp_path):
    for domain in ("a", "b"):
        for name in ("x", "y"):
            _write(tmp_path / "own" / domain / name, [(20, 28), (24, 24)], "L")
    root = tmp_path / "own"
    assert look_at_folder(root).kind == open_folder(root).kind == "small_images"
    assert open_folder(root).input_shape == (3, 28, 28)
    assert open_folder(root, 16).input_shape == (3, 16, 16)
    forced = open_folder(root, None, "photographs")
    assert (forced.kind, forced.input_shape) == ("photographs", (3, 224, 224))


def test_all_but_folders_state_their_kind():
    assert {name for name in DATASETS if DATASETS[name].kind is None} == {"folder", "table"}
    assert {DATASETS[name].kind for name in DATASETS} == {None, *KINDS}


@pytest.mark.skipif(not SPOKEN_DIGITS.is_dir(), reason="SpokenDigits is not here")
def test_spectrograms_of_spoken_digits_are_small_images():
    look = look_at_folder(SPOKEN_DIGITS)
    assert (look.kind, look.small_size) == ("small_images", 32)
    assert look.text == f"{LOOKED_AT} of 3,000 files looked at, 32 x 32 pixels, grey"


@pytest.mark.parametrize("name", ["PACS", "RSSCN7", "OfficeCaltech10"])
def test_real_photographs_are_photographs(name):
    if not PACS.with_name(name).is_dir():
        pytest.skip(f"{name} is not here")
    assert look_at_folder(PACS.with_name(name)).kind == "photographs"
