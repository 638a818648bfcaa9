import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from shiftproof.data.downloads import ArchiveError
from shiftproof.data.downloads.archives import check_plain, unpack

OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:/evil.txt"]  # noqa: S108


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_archives_are_unpacked(tmp_path):
    tar = write_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a/b.txt"), b"one")])
    packed = write_zip(tmp_path / "a.zip", [("a/c.txt", b"two")])
    unpack(tar, tmp_path / "out")
    unpack(packed, tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"one"
    assert (tmp_path / "out/a/c.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    tar = write_tar(tmp_path / "in/a.tar.gz", [(tarfile.TarInfo(name), b"x")])
    packed = write_zip(tmp_path / "in/a.zip", [("fine.txt", b"x"), (name, b"x")])
    for archive in (tar, packed):
        with pytest.raises(ArchiveError, match="leads out of the folder"):
            unpack(archive, tmp_path / "in/out")
    assert not list(tmp_path.glob("*.txt"))
    assert not list((tmp_path / "in").glob("**/*.txt"))


def test_the_folder_that_was_packed_may_be_a_member(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/b.txt").write_text("one")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", ".")  # as `tar czf a.tar.gz .` does
        assert archive.getnames() == [".", "./a", "./a/b.txt"]
    unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_text() == "one"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("goal", ["../../secret", "b.txt", "gone"])  # outside, inside, nowhere
def test_links_in_tar_files_are_refused(tmp_path, kind, goal):
    link = tarfile.TarInfo("a/link")
    link.type, link.linkname = kind, goal
    tar = write_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("b.txt"), b"x"), (link, b"")])
    with pytest.raises(ArchiveError, match=r"a\.tar\.gz: a/link is a link"):
        unpack(tar, tmp_path / "out")
    assert not list(tmp_path.glob("out/**/link"))


def test_links_in_zip_files_are_refused(tmp_path):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed = write_zip(tmp_path / "a.zip", [(entry, "../secret")])
    with pytest.raises(ArchiveError, match="link is a link"):
        unpack(packed, tmp_path / "out")
    assert not list(tmp_path.glob("out/**/link"))


@pytest.mark.parametrize(
    ("local", "central", "value", "message"),
    [(6, 8, 1, "encrypted"), (8, 10, 99, "compression method is not supported")],  # flags, and the method
)
def test_zip_files_that_cannot_be_read_are_named(tmp_path, local, central, value, message):
    path = write_zip(tmp_path / "a.zip", [("b.txt", b"x")])
    content = bytearray(path.read_bytes())
    content[local] = content[content.index(b"PK\1\2") + central] = value
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=rf"a\.zip: b\.txt: .*{message}"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_archives_are_removed(tmp_path, kind, damage):
    content = np.random.default_rng(0).bytes(100_000)  # cannot be compressed: only the checksum tells
    if kind == "a.zip":
        path = write_zip(tmp_path / kind, [("a.bin", content)])
    else:
        path = write_tar(tmp_path / kind, [(tarfile.TarInfo("a.bin"), content)])
    written = bytearray(path.read_bytes())
    written = written[: len(written) // 2] if damage == "cut" else written
    if damage == "changed":
        written[len(written) // 2] ^= 0xFF
    path.write_bytes(written)
    with pytest.raises(ArchiveError, match="was damaged and has been removed"):
        unpack(path, tmp_path / "out")
    assert not path.exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "C:x", "a\0b"])
def test_names_that_are_not_of_one_file_are_refused(tmp_path, name):
    with pytest.raises(ArchiveError, match="is not the name of a file or folder"):
        check_plain(name, tmp_path)
