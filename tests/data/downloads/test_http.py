import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shiftproof.data.downloads import DownloadError, RemoteFile
from shiftproof.data.downloads.http import download

CONTENT = np.random.default_rng(0).bytes(100_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"  # noqa: S324  (what hosts publish)


def remote(server, checksum=None, size=None, **behaviour):
    return RemoteFile(server.serve("a.bin", CONTENT, **behaviour), "a.bin", checksum, size)


@pytest.mark.parametrize("checksum", [None, SHA256, MD5])
def test_a_file_arrives_whole_and_is_not_fetched_again(server, tmp_path, checksum):
    file = remote(server, checksum, len(CONTENT))
    path = download(file, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]
    server.files.clear()
    assert download(file, tmp_path / "new") == path
    assert server.ranges == [None]


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    path = download(remote(server, SHA256, breaks_after=30_000), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_what_an_earlier_call_left_is_continued(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT[:70_000])
    assert download(remote(server, SHA256), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=70000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(b"x" * 70_000)
    assert download(remote(server, SHA256, ignores_range=True), tmp_path).read_bytes() == CONTENT


def test_one_that_ignores_ranges_and_breaks_off_gives_up_and_keeps_what_it_has(server, tmp_path):
    file = remote(server, SHA256, ignores_range=True, breaks_after=30_000)
    with pytest.raises(DownloadError, match=r"a\.bin -> .*a\.bin\.partial: expected 100000 bytes, found 30000"):
        download(file, tmp_path)
    assert (tmp_path / "a.bin.partial").read_bytes() == CONTENT[:30_000]
    assert server.ranges == [None, "bytes=30000-"]


def test_a_partial_file_that_is_complete_already_needs_no_byte(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT)
    assert download(remote(server, SHA256), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-"]


def test_the_known_size_tells_that_a_partial_file_is_complete_where_the_server_does_not(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT)
    file = remote(server, SHA256, len(CONTENT), hides_length=True)
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=100000-"]


def test_a_partial_file_is_kept_where_nothing_tells_its_length(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match=r"a\.bin\.partial: the server has nothing after the 100000 bytes"):
        download(remote(server, SHA256, hides_length=True), tmp_path)
    assert (tmp_path / "a.bin.partial").read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a device that is always full")
def test_a_full_disk_names_address_and_file(server, tmp_path):
    (tmp_path / "a.bin.partial").symlink_to("/dev/full")
    message = r"127\.0\.0\.1:\d+/a\.bin -> .*a\.bin\.partial: cannot be written: .*No space left on device"
    with pytest.raises(DownloadError, match=message):
        download(remote(server), tmp_path)


def test_a_partial_file_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.partial").write_bytes(CONTENT + b"more")
    assert download(remote(server, SHA256), tmp_path).read_bytes() == CONTENT


def test_a_server_that_announces_too_much_is_found_out(server, tmp_path):
    file = remote(server, announces=120_000)
    with pytest.raises(DownloadError, match="expected 120000 bytes, found 100000"):
        download(file, tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_a_server_that_announces_too_little_is_found_out_by_the_checksum(server, tmp_path):
    with pytest.raises(DownloadError, match=f"expected sha256 {SHA256[7:]}, found"):
        download(remote(server, SHA256, announces=90_000), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("checksum", "size", "message"),
    [
        (
            "sha256:" + "0" * 64,
            None,
            rf"127\.0\.0\.1.*a\.bin -> .*: expected sha256 0{{64}}, found {SHA256[7:]}; removed",
        ),
        (SHA256, 99_999, "expected 99999 bytes, found 100000; removed"),
    ],
)
def test_a_wrong_file_is_refused_and_removed(server, tmp_path, checksum, size, message):
    with pytest.raises(DownloadError, match=message):
        download(remote(server, checksum, size), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_names_address_and_status(server, tmp_path, status):
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1:\d+/a\.bin -> .*the server answers {status}"):
        download(remote(server, status=status), tmp_path)
    assert server.ranges == [None]


def test_a_host_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/a\.bin -> .*Connection refused"):
        download(RemoteFile("http://127.0.0.1:9/a.bin", "a.bin"), tmp_path)


def test_google_drive_is_asked_through_gdown_and_verified(tmp_path, monkeypatch):
    def fake(url, output, resume):
        assert (url, resume) == ("https://drive.google.com/uc?id=abc", True)
        with open(output, "wb") as file:
            file.write(CONTENT)

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=fake))
    url = "https://drive.google.com/uc?id=abc"
    assert download(RemoteFile(url, "a.bin", MD5), tmp_path).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="expected md5 00, found"):
        download(RemoteFile(url, "b.bin", "md5:00"), tmp_path)


def test_gdown_itself_continues_what_broke_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shiftproof.data.downloads.http._GOOGLE_DRIVE", "127.0.0.1")
    content = CONTENT * 10  # more than gdown writes at a time
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    file = RemoteFile(server.serve("a.bin", content, breaks_after=700_000), "a.bin", checksum)
    with pytest.raises(DownloadError, match=r"a\.bin -> .*incomplete.*the same command continues there"):
        download(file, tmp_path)
    [kept] = tmp_path.glob("a.bin.partial*.part")
    size = kept.stat().st_size
    assert 0 < size < 700_000
    assert download(file, tmp_path).read_bytes() == content
    assert server.ranges == [None, None, f"bytes={size}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match=r"gdown is not installed: pip install 'shiftproof\[data\]'"):
        download(RemoteFile("https://drive.google.com/uc?id=abc", "a.bin"), tmp_path)
