"""The sources of the published data sets and their terms. docs/how_to/download_data.md lists which of them were tried.

Checksums and revisions come from public code that states them; files without a known checksum have none here. Those
of the hub are read from the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shiftproof.base.registry import Registry
from shiftproof.data.downloads.camera_traps import fetch_camera_traps
from shiftproof.data.downloads.folders import fetch_folders, fetch_mnist, fetch_without_duplicates
from shiftproof.data.downloads.http import RemoteFile
from shiftproof.data.downloads.hub import HubDataset, fetch_from_hub
from shiftproof.data.folder import list_folder
from shiftproof.data.mnist import FOLDER as MNIST_FOLDER
from shiftproof.data.mnist import count_mnist

Fetch = Callable[[Path, Path], list[str]]
"""Called with a folder for downloads and one for the result; returns remarks. Called again after an interruption."""


class Count(NamedTuple):
    """The number of images by domain and class, and the differences from the published numbers, in words."""

    counts: dict[str, dict[str, int]]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A data set that can be fetched.

    Attributes:
        title: its name in papers.
        folder: name of its folder, under which `shiftproof.data` finds it.
        origin: where it is fetched from.
        size: approximate size of the download.
        terms: licence or terms of use.
        fetch: fetches it.
        count: counts the images in a folder of any name.
        notes: remarks for the user.
    """

    title: str
    folder: str
    origin: str
    size: str
    terms: str
    fetch: Fetch
    count: Callable[[Path], Count]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return what a user should know before fetching it."""
        lines = [f"{self.title}, {self.size}", f"source: {self.origin}", f"terms: {self.terms}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _count_folder(name: str, folder: Path) -> Count:
    listed = list_folder(folder, name)
    return Count(listed.counts, listed.differences)


def _count_mnist(folder: Path) -> Count:
    return Count(*count_mnist(folder / "raw"))


def _drive(file_id: str) -> str:
    return f"https://drive.google.com/uc?id={file_id}"


SOURCES: Registry[Source] = Registry("data set to get")
"""The data sets by the name that `shiftproof data get` takes."""

SOURCES.register(
    "pacs",
    Source(
        "PACS",
        "PACS",
        "flwrlabs/pacs on the Hugging Face hub",
        "190 MB",
        "the hub's card says 'unknown'; the pictures belong to their makers: research use only",
        partial(
            fetch_from_hub,
            HubDataset(
                "flwrlabs/pacs",
                "394113073258ead631f617d2e13bb377c0715c4b",
                {
                    "data/train-00000-of-00001.parquet": (
                        "sha256:4fc041ee92eec6043fe6e2859e8bdd138e5f958bc621afd153879812cbe65ff5"
                    )
                },
            ),
        ),
        partial(_count_folder, "PACS"),
        ("one drawing, n02103406_4068-1 of sketch/dog, shows the word ERROR; it is kept, as in DomainBed",),
    ),
)
SOURCES.register(
    "vlcs",
    Source(
        "VLCS",
        "VLCS",
        "DomainBed's copy on Google Drive",
        "3.6 GB",
        "none is stated for the collection; its parts (Caltech101, LabelMe, SUN09, PASCAL VOC 2007) have their own",
        partial(
            fetch_folders,
            (
                RemoteFile(
                    _drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8"), "VLCS.tar.gz", "md5:8870171eba660927d9668f4e515928e4"
                ),
            ),
            "VLCS",
        ),
        partial(_count_folder, "VLCS"),
    ),
)
SOURCES.register(
    "officehome",
    Source(
        "OfficeHome",
        "office_home",
        "flwrlabs/office-home on the Hugging Face hub",
        "about 1 GB",
        "the authors' fair-use notice: non-commercial research and education (hemanthdv.org/officeHomeDataset.html)",
        partial(fetch_from_hub, HubDataset("flwrlabs/office-home", "2a083645e3177afbd91ba4fa2651238f8994d335")),
        partial(_count_folder, "OfficeHome"),
    ),
)

_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
SOURCES.register(
    "terraincognita",
    Source(
        "TerraIncognita",
        "terra_incognita",
        "Caltech Camera Traps, the CCT20 benchmark subset, on LILA (lila.science/datasets/caltech-camera-traps)",
        "6.5 GB",
        "Community Data License Agreement, permissive variant",
        partial(
            fetch_camera_traps,
            RemoteFile(f"{_LILA}/eccv_18_all_images_sm.tar.gz", "eccv_18_all_images_sm.tar.gz"),
            RemoteFile(f"{_LILA}/eccv_18_annotations.tar.gz", "eccv_18_annotations.tar.gz"),
        ),
        partial(_count_folder, "TerraIncognita"),
        ("papers count 24,788 images; with other annotations of the same pictures, users have counted 24,330",),
    ),
)

_DOMAINBED = "https://raw.githubusercontent.com/facebookresearch/DomainBed/b93c22a1cfc3b2428398272c1a116c8de1f4139e"
_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"
SOURCES.register(
    "domainnet",
    Source(
        "DomainNet",
        "domain_net",
        "Boston University (ai.bu.edu/M3SDA), the cleaned version; the list of duplicates from DomainBed's repository",
        "18 GB",
        "see ai.bu.edu/M3SDA; pictures collected from the web: research use only",
        partial(
            fetch_without_duplicates,
            tuple(
                RemoteFile(f"{_VISDA}/{path}", path.rpartition("/")[2], checksum)
                for path, checksum in (
                    ("groundtruth/clipart.zip", "md5:cd0d8f2d77a4e181449b78ed62bccf1e"),
                    ("infograph.zip", "md5:720380b86f9e6ab4805bb38b6bd135f8"),
                    ("groundtruth/painting.zip", "md5:1ae32cdb4f98fe7ab5eb0a351768abfd"),
                    ("quickdraw.zip", "md5:bdc1b6f09f277da1a263389efe0c7a66"),
                    ("real.zip", "md5:dcc47055e8935767784b7162e7c7cca6"),
                    ("sketch.zip", "md5:658d8009644040ff7ce30bb2e820850f"),
                )
            ),
            RemoteFile(f"{_DOMAINBED}/domainbed/misc/domain_net_duplicates.txt", "domain_net_duplicates.txt"),
        ),
        partial(_count_folder, "DomainNet"),
    ),
)

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_MNIST_SOURCE = Source(
    "MNIST, from which RotatedMNIST and ColoredMNIST are made",
    MNIST_FOLDER,
    "torchvision's mirror of yann.lecun.com/exdb/mnist",
    "12 MB",
    "none is stated with the files; LeCun, Cortes and Burges made them from NIST's databases",
    partial(
        fetch_mnist,
        tuple(
            RemoteFile(f"{_MNIST}/{name}.gz", f"{name}.gz", f"md5:{digest}")
            for name, digest in (
                ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
                ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
                ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
            )
        ),
    ),
    _count_mnist,
)
SOURCES.register("rotated_mnist", _MNIST_SOURCE)
SOURCES.register("colored_mnist", _MNIST_SOURCE)
