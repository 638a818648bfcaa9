import io
import json
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftproof.base.registry import UnknownNameError
from shiftproof.cli import main
from shiftproof.data import FolderError
from shiftproof.data.downloads import SOURCES, DownloadError, RemoteFile, get_dataset
from shiftproof.data.downloads.folders import fetch_folders, fetch_without_duplicates
from shiftproof.data.folder import list_folder

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, png(number))
    return buffer.getvalue()


def remote(server, name, content, **behaviour):
    return RemoteFile(server.serve(name, content, **behaviour), name)


@pytest.fixture
def domainnet(server, monkeypatch):
    """DomainNet in small: two classes of two images per domain, two of which are on the list of duplicates."""
    archives = [
        remote(server, f"{domain}.zip", zipped([f"{domain}/{name}/{k}.png" for name in ("ant", "bee") for k in (1, 2)]))
        for domain in DOMAINS
    ]
    listing = remote(server, "list.txt", b"real/ant/1.png\nsketch/bee/2.png\nclipart/gone/1.png\n")
    source = replace(SOURCES["domainnet"], fetch=partial(fetch_without_duplicates, archives, listing))
    monkeypatch.setitem(SOURCES._entries, "domainnet", source)
    return server


def test_a_data_set_is_fetched_counted_and_recorded(domainnet, tmp_path):
    obtained = get_dataset("domainnet", tmp_path / "data")
    root = tmp_path / "data" / "domain_net"
    assert (obtained.root, obtained.fetched) == (root, True)
    assert [len(domain.paths) for domain in list_folder(root).files] == [4, 4, 4, 4, 3, 3]
    assert not (root / "real/ant/1.png").exists()
    assert obtained.remarks == ("2 of the 3 images on DomainBed's list of duplicates were there and removed",)
    assert obtained.differences[:2] == ("2 classes instead of 345", "4 images in clipart instead of 48129")
    record = json.loads((root / "source.json").read_text())
    assert record["counts"]["real"] == {"ant": 1, "bee": 2}
    assert "csr.bu.edu" not in record["source"]
    assert record["terms"] == SOURCES["domainnet"].terms
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".domain_net.lock", "domain_net"]


def test_a_finished_one_says_so_without_asking_the_network(domainnet, tmp_path, capsys):
    first = get_dataset("domainnet", tmp_path)
    domainnet.files.clear()
    domainnet.ranges.clear()
    again = get_dataset("domainnet", tmp_path)
    assert again == replace(first, fetched=False)
    assert domainnet.ranges == []
    assert main(["data", "get", "domainnet", "--output", str(tmp_path)]) == 1  # it is not the published one
    printed = capsys.readouterr().out
    assert "terms: " in printed
    assert "differs from the published data set: 2 classes instead of 345" in printed
    assert printed.endswith(f"it is there already: {tmp_path / 'domain_net'}\n")


def test_an_interrupted_one_continues(domainnet, tmp_path):
    whole = domainnet.files["/real.zip"].content
    domainnet.serve("real.zip", whole, breaks_after=300, ignores_range=True)
    with pytest.raises(DownloadError, match=r"real\.zip"):
        get_dataset("domainnet", tmp_path)
    assert not (tmp_path / "domain_net").exists()
    assert (tmp_path / "domain_net.downloads/real.zip.partial").stat().st_size == 300

    domainnet.serve("real.zip", whole)
    domainnet.ranges.clear()
    assert get_dataset("domainnet", tmp_path).fetched
    assert domainnet.ranges == ["bytes=300-", None, None]  # the rest of one archive, the last one, the list
    assert [len(domain.paths) for domain in list_folder(tmp_path / "domain_net").files] == [4, 4, 4, 4, 3, 3]


def test_an_interrupted_unpacking_is_done_again(domainnet, tmp_path, monkeypatch):
    def interrupted(archive, folder):
        (folder / "painting" / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shiftproof.data.downloads.folders.unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_dataset("domainnet", tmp_path)
    get_dataset("domainnet", tmp_path)
    assert list_folder(tmp_path / "domain_net").classes == ("ant", "bee")


def test_domains_that_were_removed_are_fetched_again(domainnet, tmp_path, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(SOURCES._entries, "domainnet", replace(SOURCES["domainnet"], count=interrupted))
        with pytest.raises(KeyboardInterrupt):
            get_dataset("domainnet", tmp_path)
    shutil.rmtree(tmp_path / "domain_net.partial/real")
    domainnet.ranges.clear()
    get_dataset("domainnet", tmp_path)
    assert domainnet.ranges == [None]  # one archive
    assert [len(domain.paths) for domain in list_folder(tmp_path / "domain_net").files] == [4, 4, 4, 4, 3, 3]


def test_duplicates_that_an_interrupted_call_removed_are_counted(domainnet, tmp_path, monkeypatch):
    unlink = Path.unlink

    def interrupted(path, missing_ok=False):
        if path.name == "2.png":  # the second on the list
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_dataset("domainnet", tmp_path)
    part = tmp_path / "domain_net.partial"
    assert not (part / "real/ant/1.png").exists()
    assert (part / "sketch/bee/2.png").exists()
    [remark] = get_dataset("domainnet", tmp_path).remarks
    assert remark.startswith("2 of the 3 images")


def test_a_data_set_that_could_not_be_opened_is_not_finished(domainnet, tmp_path):
    domainnet.serve("list.txt", b"real/ant/1.png\nreal/ant/2.png\n")
    for _ in range(2):
        with pytest.raises(FolderError, match=r"classes without images: .*real/ant"):
            get_dataset("domainnet", tmp_path)
    assert not (tmp_path / "domain_net").exists()
    assert (tmp_path / "domain_net.partial/real/bee").is_dir()


def test_downloads_that_cannot_be_removed_are_a_remark(domainnet, tmp_path):
    get_dataset("domainnet", tmp_path)
    (tmp_path / "domain_net.downloads").write_text("no folder")
    again = get_dataset("domainnet", tmp_path)
    assert "domain_net.downloads is no longer needed and could not be removed: " in again.remarks[-1]
    assert again.remarks[-1] in again.text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["data", "get", "pacs", "--output"], "folder"),
        (["data", "check"], "folder"),
        (["bench", "optimizer", "--output"], "file"),
    ],
)
def test_commands_that_write_or_read_here_refuse_other_places(capsys, arguments, what):
    with pytest.raises(SystemExit):
        main([*arguments, "s3://bucket/x"])
    assert f"expected a {what} on this machine, not s3://bucket/x" in capsys.readouterr().err


def test_a_folder_that_was_there_is_left_alone(domainnet, tmp_path):
    (tmp_path / "domain_net").mkdir()
    with pytest.raises(FileExistsError, match="was not fetched by this command"):
        get_dataset("domainnet", tmp_path)
    assert domainnet.ranges == []


def test_archives_may_hold_their_domains_in_a_folder(server, tmp_path):
    content = zipped(["VLCS/SUN09/bird/a.png", "VLCS/readme.png", "__MACOSX/VLCS/x.png", "VLCS/.git/x/y.png"])
    fetch_folders([remote(server, "VLCS.zip", content)], "VLCS", tmp_path / "downloads", tmp_path / "set")
    assert [path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*.png")] == [
        "SUN09/bird/a.png"
    ]


def test_every_source_is_known_by_the_name_that_it_is_opened_by():
    from shiftproof.data import DATASETS
    from shiftproof.data.folder import _BENCHMARKS

    folders = {benchmark.name: benchmark.folder for benchmark in _BENCHMARKS}
    for name in SOURCES:
        source = SOURCES[name]
        if name in DATASETS:
            assert source.folder == "MNIST"
        else:
            assert source.folder == folders[source.title]
    with pytest.raises(UnknownNameError, match="Did you mean officehome"):
        get_dataset("office_home", None)


def test_a_record_that_is_damaged_is_named(domainnet, tmp_path):
    get_dataset("domainnet", tmp_path)
    (tmp_path / "domain_net/source.json").write_text("{")
    with pytest.raises(ValueError, match=r"source\.json is damaged .*; remove .*domain_net and fetch it again"):
        get_dataset("domainnet", tmp_path)
    shutil.rmtree(tmp_path / "domain_net")
    assert get_dataset("domainnet", tmp_path).fetched
