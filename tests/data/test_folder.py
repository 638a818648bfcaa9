import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from shiftproof.data import (
    DATASETS,
    FolderError,
    grouped_split,
    labelled_images,
    open_folder,
    random_split,
)

TREE = {
    "photo": {"dog": ["b.png", "a.png", "B.png", "10.png", "9.png"], "cat": ["x.png"]},
    "art": {"cat": ["p.png", "o.png"], "dog": ["q.png"]},
}
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_COUNTS = (2048, 2344, 1670, 3929)


def test_folder_has_sorted_domains_and_classes(image_tree):
    dataset = DATASETS["folder"].open(image_tree(TREE), 8, "photographs")
    assert dataset.name == "shapes"
    assert dataset.domain_names == ("art", "photo")
    assert dataset.classes == ("cat", "dog")
    assert dataset.kind == "photographs"
    assert dataset.input_shape == (3, 8, 8)
    assert dataset.domains[0].targets.tolist() == [0, 0, 1]
    assert dataset.domains[1].targets.tolist() == [0, 1, 1, 1, 1, 1]


def test_folder_lists_files_in_the_order_of_torchvision(image_tree):
    root = image_tree(TREE)
    nested = root / "photo" / "dog" / "A" / "z.png"
    nested.parent.mkdir()
    shutil.copyfile(root / "photo" / "dog" / "a.png", nested)
    for domain in labelled_images(root, ("cat", "dog")):
        expected = ImageFolder(root / domain.name).samples
        files = [(str(path), label) for path, label in zip(domain.paths, domain.labels, strict=True)]
        assert files == expected


def test_folder_ignores_hidden_and_other_files(image_tree):
    root = image_tree(TREE)
    for stray in ("README.md", "photo/list.txt", "photo/dog/notes.txt", "photo/dog/._a.png", ".hidden/x.png"):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_text("no image")
    assert [len(domain) for domain in open_folder(root, 8).domains] == [3, 6]


def test_folder_accepts_one_domain(image_tree):
    assert open_folder(image_tree({"only": {"cat": ["a.png"], "dog": ["b.png"]}}), 8).domain_names == ("only",)


def test_folder_resizes_to_224_unless_told(image_tree):
    assert open_folder(image_tree(TREE), kind="photographs").input_shape == (3, 224, 224)


def test_folder_groups_drawings_of_one_photograph(image_tree):
    drawings = ["n02_7-1.png", "n02_7-2.png", "n02_8-1.png", "n02_9.png", "x_7-1.png", "x_7-2.png"]
    root = image_tree(
        {"art": {"cat": ["n02_7.png"], "dog": ["n02_8.png"]}, "sketch": {"cat": drawings, "dog": ["n02_8-5.png"]}}
    )
    art, sketch = open_folder(root, 8).domains
    assert art.groups is None
    assert sketch.groups.tolist() == [0, 0, 1, 2, 3, 4, 1]  # across classes too


def test_fingerprint_survives_a_move_and_a_touch(image_tree, tmp_path):
    root = image_tree(TREE)
    before = open_folder(root, 8).fingerprint
    shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copyfile)
    assert open_folder(tmp_path / "moved", 8).fingerprint == before


def test_fingerprint_depends_on_names_pixels_and_image_size(image_tree):
    root = image_tree(TREE)
    prints = [open_folder(root, 8).fingerprint, open_folder(root, 9).fingerprint]
    (root / "art" / "cat" / "o.png").rename(root / "art" / "dog" / "o.png")
    prints.append(open_folder(root, 8).fingerprint)
    path = root / "art" / "dog" / "o.png"
    size = path.stat().st_size
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size == pytest.approx(size, abs=20)
    prints.append(open_folder(root, 8).fingerprint)
    assert len(set(prints)) == 4


def test_fingerprint_depends_on_the_orientation_and_is_else_what_it_was(image_tree):
    root = image_tree(TREE)
    assert open_folder(root, 9).fingerprint == "392502f35a70ea75"  # as before orientations counted
    path = root / "art" / "cat" / "o.png"
    pixels, exif = Image.open(path).copy(), Image.Exif()
    for orientation in (1, 3):
        exif[0x0112] = orientation
        pixels.save(path, exif=exif)
        assert (open_folder(root, 9).fingerprint == "392502f35a70ea75") == (orientation == 1)


def test_labelled_images_is_not_misled_by_stray_images(image_tree):
    root = image_tree(TREE)
    classes = open_folder(root, 8).classes
    (root / "art" / "stray.png").write_bytes(b"")
    assert [domain.name for domain in labelled_images(root, classes)] == list(open_folder(root, 8).domain_names)
    assert [domain.name for domain in labelled_images(root / "art", classes)] == ["art"]


def test_folder_refuses_no_folder():
    with pytest.raises(FolderError, match="needs a data folder"):
        open_folder(None)


def test_folder_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FolderError, match=r"gone: no such folder"):
        open_folder(tmp_path / "gone")


def test_folder_refuses_an_empty_folder(tmp_path):
    with pytest.raises(FolderError, match=r"no domain folders; expected <root>/<domain>/<class>/<image>"):
        open_folder(tmp_path)


def test_folder_refuses_a_tree_without_domains(image_tree):
    with pytest.raises(FolderError, match=r"photo/cat: no class folders; expected"):
        open_folder(image_tree(TREE) / "photo")


def test_folder_refuses_classes_that_differ(image_tree):
    root = image_tree({"art": {"cat": ["a.png"], "dog": ["b.png"]}, "photo": {"cat": ["c.png"], "dgo": ["d.png"]}})
    with pytest.raises(FolderError, match="classes differ between domains: art lacks dgo; photo lacks dog"):
        open_folder(root, 8)


def test_folder_refuses_a_class_without_images(image_tree):
    root = image_tree(TREE)
    (root / "photo" / "cat" / "x.png").rename(root / "photo" / "cat" / "x.txt")
    with pytest.raises(FolderError, match=r"classes without images: .*photo/cat"):
        open_folder(root, 8)


def test_labelled_images_of_domains_and_of_classes_alone(image_tree):
    root = image_tree(TREE)
    classes = ("dog", "horse", "cat")
    art, photo = labelled_images(root, classes)
    assert (art.name, art.labels.tolist()) == ("art", [2, 2, 0])
    assert [path.name for path in art.paths] == ["o.png", "p.png", "q.png"]
    (alone,) = labelled_images(root / "photo", classes)
    assert alone.name == "photo"
    assert alone.paths == photo.paths
    assert alone.labels.tolist() == photo.labels.tolist() == [2, 0, 0, 0, 0, 0]


def test_labelled_images_refuses_unknown_classes(image_tree):
    with pytest.raises(FolderError, match="does not know the classes dog; it knows cat, horse"):
        labelled_images(image_tree(TREE), ("cat", "horse"))


def test_labelled_images_refuses_a_folder_without_images(tmp_path):
    with pytest.raises(FolderError, match="no images in it"):
        labelled_images(tmp_path, ("cat",))
    (tmp_path / "art" / "cat").mkdir(parents=True)
    with pytest.raises(FolderError, match="no images in art"):
        labelled_images(tmp_path, ("cat",))


def test_labelled_images_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FolderError, match="gone: no such folder"):
        labelled_images(tmp_path / "gone", ("cat",))


HOME = {domain: {"desk": ["a.png"], "lamp": ["b.png"]} for domain in ("Art", "Clipart", "Product", "Real World")}


@pytest.mark.parametrize("folder", ["OfficeHome", "office_home"])
def test_benchmark_is_found_by_name_in_its_parent_or_itself(image_tree, folder):
    root = image_tree(HOME, folder)
    for data_dir in (root.parent, root):
        with pytest.warns(UserWarning, match="OfficeHome"):
            dataset = DATASETS["OfficeHome"].open(data_dir, 8)
        assert dataset.name == "OfficeHome"
        assert dataset.domain_names == ("Art", "Clipart", "Product", "Real World")


def test_benchmark_reports_all_differences_in_one_warning(image_tree):
    tree = {domain: {"bus": ["a.png"], "car": ["b.png"]} for domain in PACS_DOMAINS}
    with pytest.warns(UserWarning, match="PACS") as caught:
        DATASETS["PACS"].open(image_tree(tree, "PACS"), 8)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("PACS in ")
    assert "2 classes instead of 7; 2 images in art_painting instead of 2048; 2 images in cartoon" in message
    assert "domains" not in message


def test_benchmark_reports_other_domains(image_tree):
    tree = {domain: {"bus": ["a.png"], "car": ["b.png"]} for domain in ("Caltech101", "LabelMe", "SUN09")}
    expected = (
        "domains Caltech101, LabelMe, SUN09 instead of Caltech101, LabelMe, SUN09, VOC2007; 2 classes instead of 5"
    )
    with pytest.warns(UserWarning, match=expected):
        DATASETS["VLCS"].open(image_tree(tree, "VLCS"), 8)


def test_vlcs_is_compared_domain_by_domain(image_tree):
    tree = {domain: {"bus": ["a.png"], "car": ["b.png"]} for domain in ("Caltech101", "LabelMe", "SUN09", "VOC2007")}
    with pytest.warns(UserWarning, match="2 images in LabelMe instead of 2656; 2 images in SUN09 instead of 3282"):
        DATASETS["VLCS"].open(image_tree(tree, "VLCS"), 8)


def test_benchmark_refuses_two_candidates(image_tree):
    root = image_tree(HOME, "OfficeHome")
    image_tree(HOME, "office_home")
    with pytest.raises(FolderError, match="holds both OfficeHome and office_home"):
        DATASETS["OfficeHome"].open(root.parent, 8)


def test_benchmark_refuses_a_folder_without_it(tmp_path):
    with pytest.raises(FolderError, match="does not hold TerraIncognita or terra_incognita"):
        DATASETS["TerraIncognita"].open(tmp_path, 8)


def test_benchmark_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FolderError, match="gone: no such folder"):
        DATASETS["DomainNet"].open(tmp_path / "gone", 8)


def test_benchmark_refuses_no_folder():
    with pytest.raises(FolderError, match="VLCS needs a data folder"):
        DATASETS["VLCS"].open(None, 8)


@pytest.fixture(scope="module")
def pacs(pacs_folder, tmp_path_factory):
    """PACS at 16 x 16 pixels, opened as a user does: by its parent folder."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("SHIFTPROOF_CACHE", str(tmp_path_factory.mktemp("cache")))
        warnings.simplefilter("error")  # it is the published set
        yield DATASETS["PACS"].open(pacs_folder.parent, 16)


def test_pacs_counts_and_order(pacs):
    assert pacs.name == "PACS"
    assert pacs.domain_names == PACS_DOMAINS
    assert pacs.classes == PACS_CLASSES
    assert tuple(len(domain) for domain in pacs.domains) == PACS_COUNTS
    assert tuple(len(domain.inputs) for domain in pacs.domains) == PACS_COUNTS
    assert np.bincount(pacs.domains[3].targets).tolist() == [772, 740, 753, 608, 816, 80, 160]


def test_pacs_files_are_in_the_order_of_torchvision(pacs_folder):
    for domain in labelled_images(pacs_folder, PACS_CLASSES):
        assert [str(path) for path in domain.paths] == [
            path for path, _ in ImageFolder(pacs_folder / domain.name).samples
        ]


def test_pacs_random_split_is_domainbeds(pacs):
    first_out = ([548, 677, 1997], [1488, 562, 461], [1441, 1432, 282], [2743, 2083, 2744])
    for position, (domain, expected) in enumerate(zip(pacs.domains, first_out, strict=True)):
        split = random_split(len(domain), 0, position)
        assert split.out[:3].tolist() == expected
        assert len(split.out) == (409, 468, 334, 785)[position]


def test_pacs_grouped_split_keeps_drawings_of_a_photograph_together(pacs):
    assert [domain.groups is None for domain in pacs.domains] == [True, True, True, False]
    groups = pacs.domains[3].groups
    assert len(np.unique(groups)) == 3929 - 3289 + 500
    split = grouped_split(groups, 0, 3)
    assert len(split.out) == 785
    assert not set(groups[split.in_]) & set(groups[split.out])
