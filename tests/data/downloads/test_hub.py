import hashlib
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shiftproof.data import open_folder
from shiftproof.data.downloads import ArchiveError, DownloadError
from shiftproof.data.downloads.hub import HubDataset, fetch_from_hub, hub_files, write_images

CLASSES = ["cat", "dog"]
ROWS = [  # domain, label, the file's name
    ("photo", 0, "pic_001.png"),
    ("photo", 1, "pic_001.png"),
    ("art", 1, "pic_002.png"),
    ("art", 0, "pic_010.png"),
    ("art", 1, "pic_001.png"),
]


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, rows, classes=CLASSES, start=0, without=()):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": png(start + i), "path": name} for i, (_, _, name) in enumerate(rows)], type=image
            ),
            "domain": [domain for domain, _, _ in rows],
            "label": pa.array([label for _, label, _ in rows], type=pa.int64()),
        }
    )
    info = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)} if classes else {})
    pq.write_table(table.drop_columns(list(without)), path)
    return path


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_images_keep_their_bytes_and_names(tmp_path):
    files = [write_parquet(tmp_path / "a.parquet", ROWS[:3]), write_parquet(tmp_path / "b.parquet", ROWS[3:], start=3)]
    assert write_images(files, tmp_path / "set") == []
    assert tree(tmp_path / "set") == {
        f"{domain}/{CLASSES[label]}/{name}": png(i) for i, (domain, label, name) in enumerate(ROWS)
    }


@pytest.mark.parametrize("name", [None, "pic_002.png"])  # one has none; one has another's
def test_images_are_named_by_their_rows_where_their_own_names_do_not_do(tmp_path, name):
    rows = [*ROWS[:4], ("art", 1, name)]
    [remark] = write_images([write_parquet(tmp_path / "a.parquet", rows)], tmp_path / "set")
    assert "may differ" in remark
    assert tree(tmp_path / "set") == {
        f"{domain}/{CLASSES[label]}/{i:06d}.png": png(i) for i, (domain, label, _) in enumerate(rows)
    }


def test_what_an_interrupted_call_left_is_not_kept(tmp_path):
    (tmp_path / "set/photo/bird").mkdir(parents=True)
    write_images([write_parquet(tmp_path / "a.parquet", ROWS)], tmp_path / "set")
    assert open_folder(tmp_path / "set", 8).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("rows", "classes", "error", "message"),
    [
        ([("../up", 0, "a.png")], CLASSES, ArchiveError, "not the name of a file"),
        ([("photo", 0, "..")], CLASSES, ArchiveError, "not the name of a file"),
        ([("photo", 0, "a.png")], ["a/b", "c"], ArchiveError, "not the name of a file"),
        ([("photo", 2, "a.png")], CLASSES, ValueError, "row 0 has label 2, but there are 2 classes"),
        ([("photo", 0, "a.png")], None, ValueError, r"a\.parquet: the schema does not name the classes"),
        ([*ROWS, ("photo", None, "a.png")], CLASSES, ValueError, r"a\.parquet: row 5 has no label"),
        ([*ROWS, (None, 0, "a.png")], CLASSES, ValueError, r"a\.parquet: row 5 has no domain"),
    ],
)
def test_unexpected_contents_are_refused(tmp_path, rows, classes, error, message):
    with pytest.raises(error, match=message):
        write_images([write_parquet(tmp_path / "a.parquet", rows, classes)], tmp_path / "set")
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("column", ["image", "domain", "label"])
def test_a_file_without_a_column_is_named(tmp_path, column):
    files = [write_parquet(tmp_path / "a.parquet", ROWS), write_parquet(tmp_path / "b.parquet", ROWS, without=[column])]
    with pytest.raises(ValueError, match=rf"b\.parquet: there is no column {column}"):
        write_images(files, tmp_path / "set")


def test_a_row_without_an_image_is_named(tmp_path):
    image = pa.array(
        [{"bytes": None, "path": "a.png"}], type=pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pq.read_table(write_parquet(tmp_path / "a.parquet", ROWS[:1]))
    pq.write_table(table.set_column(0, "image", image), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: row 0 has no image\.bytes"):
        write_images([tmp_path / "a.parquet"], tmp_path / "set")


def test_files_are_closed(tmp_path, monkeypatch):
    opened = []

    class ParquetFile(pq.ParquetFile):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr(pq, "ParquetFile", ParquetFile)
    write_images([write_parquet(tmp_path / "a.parquet", ROWS)], tmp_path / "set")
    assert [file.closed for file in opened] == [True]


def serve_hub(server, files, revision="abc"):
    """Let a server answer as the hub does when it is asked for a data set's files."""
    siblings = [{"rfilename": "README.md", "size": 3}]
    for name, content in files.items():
        server.serve(f"datasets/me/set/resolve/{revision}/{name}", content)
        digest = hashlib.sha256(content).hexdigest()
        siblings.append(
            {"rfilename": name, "size": len(content), "lfs": {"sha256": digest, "size": len(content), "pointerSize": 1}}
        )
    answer = {"id": "me/set", "sha": revision, "siblings": siblings, "tags": [], "private": False}
    server.serve(f"api/datasets/me/set/revision/{revision}", json.dumps(answer).encode())


def test_the_hub_is_asked_for_files_and_their_sums(server, tmp_path, monkeypatch):
    content = write_parquet(tmp_path / "a.parquet", ROWS).read_bytes()
    serve_hub(server, {"data/train-00000-of-00001.parquet": content})
    [file] = hub_files(HubDataset("me/set", "abc"), server.url)
    assert file.name == "data_train-00000-of-00001.parquet"
    assert file.url == f"{server.url}/datasets/me/set/resolve/abc/data/train-00000-of-00001.parquet"
    assert (file.size, file.checksum) == (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")

    monkeypatch.setattr("shiftproof.data.downloads.hub.hub_files", lambda dataset: [file])
    assert fetch_from_hub(HubDataset("me/set", "abc"), tmp_path / "downloads", tmp_path / "set") == []
    assert len(tree(tmp_path / "set")) == len(ROWS)


def test_files_of_one_name_in_two_folders_are_both_fetched(server):
    serve_hub(server, {"art/0.parquet": b"1", "photo/0.parquet": b"2"})
    assert [file.name for file in hub_files(HubDataset("me/set", "abc"), server.url)] == [
        "art_0.parquet",
        "photo_0.parquet",
    ]


def test_a_sum_that_is_known_here_wins_over_the_hubs(server):
    serve_hub(server, {"a.parquet": b"content"})
    [file] = hub_files(HubDataset("me/set", "abc", {"a.parquet": "sha256:00"}), server.url)
    assert file.checksum == "sha256:00"


def test_a_hub_that_does_not_have_it_is_named(server):
    with pytest.raises(DownloadError, match=r"the hub does not list me/set at abc: .*404"):
        hub_files(HubDataset("me/set", "abc"), server.url)
    serve_hub(server, {})
    with pytest.raises(DownloadError, match=re.escape("me/set at abc holds no parquet files")):
        hub_files(HubDataset("me/set", "abc"), server.url)
