import io
import json
import tarfile
from pathlib import Path

import pytest

from shiftproof.data.downloads import ArchiveError, RemoteFile
from shiftproof.data.downloads.camera_traps import fetch_camera_traps, image_folders

CATEGORIES = [{"id": 1, "name": "opossum"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "car"}]
TRAIN = {
    "categories": CATEGORIES,
    "images": [
        {"id": "a", "file_name": "a.jpg", "location": 38},
        {"id": "b", "file_name": "b.jpg", "location": "100"},
        {"id": "c", "file_name": "c.jpg", "location": 7},  # not in use
        {"id": "d", "file_name": "d.jpg", "location": 43},  # shows a car only
        {"id": "e", "file_name": "e.jpg", "location": 46},  # not annotated
    ],
    "annotations": [
        {"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"image_id": "a", "category_id": 1, "bbox": [2, 2, 1, 1]},  # a second opossum
        {"image_id": "c", "category_id": 1},
        {"image_id": "d", "category_id": 3},
        {"image_id": "b", "category_id": 2},
    ],
}
TEST = {
    "categories": CATEGORIES,
    "images": [{"id": "f", "file_name": "f.jpg", "location": 100}],
    "annotations": [{"image_id": "f", "category_id": 2}, {"image_id": "f", "category_id": 1}],
}
FOLDERS = {
    "a.jpg": ["location_38/opossum"],
    "b.jpg": ["location_100/cat"],
    "f.jpg": ["location_100/cat", "location_100/opossum"],
}


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


ANNOTATIONS = {
    "files/train.json": json.dumps(TRAIN).encode(),
    "files/test.json": json.dumps(TEST).encode(),
    "files/._test.json": b"\0\5\x16\7",  # as macOS packs them
}


def remote(server, images, annotations=ANNOTATIONS):
    return (
        RemoteFile(server.serve("images.tar.gz", tar(images)), "images.tar.gz"),
        RemoteFile(server.serve("annotations.tar.gz", tar(annotations)), "annotations.tar.gz"),
    )


def test_images_go_by_location_and_by_every_kind_of_animal_in_use():
    assert image_folders([(Path("train.json"), TRAIN), (Path("test.json"), TEST)]) == FOLDERS


def test_file_names_cannot_lead_elsewhere():
    bad = {**TEST, "images": [{"id": "f", "file_name": "../f.jpg", "location": 100}]}
    with pytest.raises(ArchiveError, match=r"test\.json: '\.\./f\.jpg' is not the name of a file"):
        image_folders([(Path("test.json"), bad)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "there is no 'categories'"),
        ({**TEST, "images": [{"id": "f", "location": 100}]}, "there is no 'file_name'"),
        ({**TEST, "annotations": [{"image_id": "f", "category_id": 9}]}, "image 'f' has category '9', which has no"),
        ([TEST], "is not in COCO's format"),
    ],
)
def test_annotations_of_another_form_are_named(content, message):
    with pytest.raises(ArchiveError, match=rf"test\.json.*{message}"):
        image_folders([(Path("test.json"), content)])


def test_annotations_that_are_not_json_are_named(server, tmp_path):
    files = remote(server, {}, {"files/train.json": b"{"})
    with pytest.raises(ArchiveError, match=r"files/train\.json is not JSON"):
        fetch_camera_traps(*files, tmp_path / "downloads", tmp_path / "set")


def test_only_the_images_in_use_are_written(server, tmp_path):
    images = {f"small/{letter}.jpg": letter.encode() for letter in "abcdef"}
    remarks = fetch_camera_traps(*remote(server, images), tmp_path / "downloads", tmp_path / "set")
    assert remarks == ["1 images show more than one kind of animal and are in each one's folder, as in DomainBed"]
    written = {
        path.relative_to(tmp_path / "set").as_posix(): path.read_text() for path in tmp_path.rglob("set/**/*.jpg")
    }
    assert written == {f"{place}/{name}": name[0] for name, places in FOLDERS.items() for place in places}


def test_an_archive_that_lacks_images_is_refused(server, tmp_path):
    with pytest.raises(ArchiveError, match=r"images\.tar\.gz lacks 2 annotated images, such as b\.jpg"):
        fetch_camera_traps(*remote(server, {"a.jpg": b"a"}), tmp_path / "downloads", tmp_path / "set")


def test_a_damaged_archive_is_removed_and_the_next_call_fetches_it_anew(server, tmp_path):
    files = remote(server, {f"{letter}.jpg": bytes(5000) for letter in "abf"})
    whole = server.files["/images.tar.gz"].content
    server.serve("images.tar.gz", whole[:-3])
    with pytest.raises(ArchiveError, match=r"images\.tar\.gz was damaged and has been removed"):
        fetch_camera_traps(*files, tmp_path / "downloads", tmp_path / "set")
    server.serve("images.tar.gz", whole)
    fetch_camera_traps(*files, tmp_path / "downloads", tmp_path / "set")
    assert len(list(tmp_path.rglob("set/**/*.jpg"))) == 4
