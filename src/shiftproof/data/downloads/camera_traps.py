"""TerraIncognita, made from Caltech's camera traps as DomainBed makes it.

Four locations are the domains, and ten kinds of animal the classes. An image has one annotation per animal seen; an
image of two kinds goes into both folders. Source: Beery, Van Horn and Perona, "Recognition in Terra Incognita", ECCV
2018.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from shiftproof.data.downloads.archives import ArchiveError, check_plain, read_to_end, removed_if_damaged, unpack
from shiftproof.data.downloads.http import RemoteFile, download

LOCATIONS = ("38", "43", "46", "100")
CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")


def fetch_camera_traps(images: RemoteFile, annotations: RemoteFile, downloads: Path, folder: Path) -> list[str]:
    """Fetch images and annotations and write `<folder>/location_<n>/<class>/<image>`.

    Only the images in use are unpacked, in one pass over the archive.

    Args:
        images: a tar archive of image files.
        annotations: a tar archive of JSON files in COCO's format, with a location per image.
        downloads: folder for the archives.
        folder: folder for the images; removed first if it exists.

    Returns:
        Remarks: how many images are in two folders.

    Raises:
        DownloadError: a file cannot be fetched.
        ArchiveError: an archive is damaged, holds unsafe names, or lacks annotated images; annotations do not have
            the expected format.
    """
    image_archive, annotation_archive = download(images, downloads), download(annotations, downloads)
    unpacked = downloads / "annotations"
    unpack(annotation_archive, unpacked)
    folders = image_folders(_annotations(unpacked))
    shutil.rmtree(folder, ignore_errors=True)
    _extract(image_archive, folders, folder)
    several = sum(len(places) > 1 for places in folders.values())
    return [f"{several} images show more than one kind of animal and are in each one's folder, as in DomainBed"]


def _annotations(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Read the JSON files of a folder, except hidden ones, which macOS adds."""
    for file in sorted(folder.rglob("*.json")):
        if file.name.startswith("."):
            continue
        try:
            yield file, json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{file} is not JSON: {error}") from error


def image_folders(annotations: Iterable[tuple[Path, Any]]) -> dict[str, list[str]]:
    """Return the folders (`location_<n>/<class>`) of every image, by its file name.

    It makes one pass over images and one over annotations.

    Args:
        annotations: files with their contents: `images` (id, file_name, location), `annotations` (image_id,
            category_id) and `categories` (id, name). Files may share images and categories.

    Raises:
        ArchiveError: a file lacks one of these, a file name is not a plain name, or a category is unknown.
    """
    categories: dict[Any, str] = {}
    names: dict[Any, tuple[str, str]] = {}
    labels: list[tuple[Any, Any, Path]] = []
    for file, content in annotations:
        try:
            categories |= {category["id"]: category["name"] for category in content["categories"]}
            for image in content["images"]:
                if str(image["location"]) in LOCATIONS:
                    names[image["id"]] = check_plain(str(image["file_name"]), file), str(image["location"])
            labels += [(label["image_id"], label["category_id"], file) for label in content["annotations"]]
        except KeyError as error:
            raise ArchiveError(f"{file}: there is no {error}") from error
        except TypeError as error:
            raise ArchiveError(f"{file} is not in COCO's format: {error}") from error
    folders: dict[str, list[str]] = {}
    for image_id, category_id, file in labels:
        if image_id not in names:
            continue
        if category_id not in categories:
            raise ArchiveError(f"{file}: image '{image_id}' has category '{category_id}', which has no name")
        if categories[category_id] in CLASSES:
            name, location = names[image_id]
            place = f"location_{location}/{categories[category_id]}"
            places = folders.setdefault(name, [])
            if place not in places:
                places.append(place)
    return folders


def _extract(archive: Path, folders: Mapping[str, list[str]], into: Path) -> None:
    from tqdm import tqdm

    missing = set(folders)
    with (
        removed_if_damaged(archive),
        tarfile.open(archive) as opened,
        tqdm(total=len(folders), desc=into.name, unit="image") as bar,
    ):
        for member in opened:
            name = PurePosixPath(member.name).name
            content = opened.extractfile(member) if member.isfile() and name in missing else None
            if content is None:
                continue
            first, *others = [into / place / name for place in folders[name]]
            for path in (first, *others):
                path.parent.mkdir(parents=True, exist_ok=True)
            with first.open("wb") as output:
                shutil.copyfileobj(content, output)
            for path in others:
                shutil.copyfile(first, path)
            missing.remove(name)
            bar.update()
        read_to_end(opened)
    if missing:
        raise ArchiveError(f"{archive} lacks {len(missing)} annotated images, such as {min(missing)}")
