"""Trees of files as people have them: what could be meant in two ways is asked, with the command for each."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftproof.cli import main
from shiftproof.data import Domain, DomainDataset, FolderError, labelled_images, open_folder
from shiftproof.data.folder import list_folder
from shiftproof.models import build_network
from shiftproof.training.saved_model import save_model

DOMAINS = ("amazon", "dslr", "web cam")
CLASSES = ("bike", "mug")


@pytest.fixture
def write(tmp_path):
    """A function that writes one picture into every folder named by a pattern of `/`, levels as tuples of names."""

    def written(*levels):
        folders = [tmp_path / "my data"]
        for names in levels:
            folders = [folder / name for folder in folders for name in names]
        random = np.random.default_rng(0)
        for folder in folders:
            folder.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "x.png")
        return tmp_path / "my data"

    return written


def refusal(root, capsys):
    """What `compare`, `train` and `data check` say of a folder: the same, at once, and with exit status 1."""
    said = []
    given = ["--dataset", "folder", "--data-dir", str(root)]
    for command in (["compare", *given], ["train", *given, "--target", "a"], ["data", "check", str(root)]):
        output = [] if command[0] == "data" else ["--output", str(root.parent / "out")]
        assert main([*command, *output]) == 1
        said.append(capsys.readouterr().err)
    assert said[1:] == said[:1] * 2
    assert not (root.parent / "out").exists()
    return said[0]


def followed(reading, folder):
    """Run the command of a reading in the shell, and return the folder that it says to name."""
    before, option = reading.rsplit("--data-dir ", 1)
    if "mkdir" in before:
        command = before[before.index("mkdir") :].partition(", ")[0].replace("NAME_OF_THE_DOMAIN", "shop")
        subprocess.run(["bash", "-euc", command], cwd=folder, check=True)
    place = option.partition(" (or data check ")[0]
    return folder / shlex.split(place)[0]


def readings(said):
    return [line.strip().split(": ", 1) for line in said.splitlines()[1:]]


def test_one_level_too_many_is_asked(write, capsys, tmp_path):
    """As in Office-31."""
    said = refusal(write(DOMAINS, ("images",), CLASSES), capsys)
    assert "my data/amazon/images: read as a class, but it holds folders (bike, mug) and no pictures." in said
    [(level, links), (nested, move)] = readings(said)  # as a data set, amazon would have one domain
    assert level == "images is one level too many"
    assert nested == "images is a class with its pictures in folders of its own"
    assert list_folder(followed(links, tmp_path)).counts == {domain: {"bike": 1, "mug": 1} for domain in DOMAINS}
    before = next(Path(tmp_path, "my data/amazon").rglob("x.png")).read_bytes()
    subprocess.run(["bash", "-euc", move], cwd=tmp_path, check=True)
    assert (tmp_path / "my data/amazon/images/x.png").read_bytes() == before


def test_parts_of_every_domain_are_asked(write, capsys, tmp_path):
    said = refusal(write(DOMAINS, ("Val", "train"), CLASSES), capsys)
    assert "my data/amazon/train: read as a class" in said
    (part, links), (nested, _) = readings(said)
    assert part == "train is a part of each domain"
    assert nested.startswith("train is a class")
    assert list_folder(followed(links, tmp_path)).counts == {domain: {"bike": 1, "mug": 1} for domain in DOMAINS}


@pytest.mark.parametrize("parts", [("train", "val"), ("test", "TRAIN"), ("valid",), ("validation",), ("Test", "other")])
def test_parts_that_hold_the_domains_are_asked(write, capsys, tmp_path, parts):
    said = refusal(write(parts, DOMAINS, CLASSES), capsys)
    assert "would be read as domains, but are names of parts of a data set. Which is meant?" in said
    (part, root), (domains, rename) = readings(said)
    first = next((name for name in parts if name.lower() == "train"), parts[0])
    assert part.startswith("they are parts of a data set, which is split here anyway")
    assert root.startswith(f"take {first}, with the domains amazon, dslr, web cam: ")
    assert [domain.name for domain in list_folder(followed(root, tmp_path)).files] == list(DOMAINS)
    assert domains == "they are domains"
    assert rename == f"rename them, mv '{tmp_path}/my data/{first}' '{tmp_path}/my data/NAME_OF_THE_DOMAIN'"


def test_parts_of_classes_alone_are_asked(write, capsys, tmp_path):
    said = refusal(write(("train", "test"), CLASSES), capsys)
    (part, link), (domains, rename) = readings(said)
    assert part == "they are parts of one domain, which is split here anyway"
    assert list_folder(followed(link, tmp_path)).counts == {"shop": {"bike": 1, "mug": 1}}
    assert domains == "they are domains"
    for part in ("train", "test"):
        move = rename.partition(", ")[2].replace("train", part).replace("NAME_OF_THE_DOMAIN", f"first {part}ers")
        subprocess.run(["bash", "-euc", move], cwd=tmp_path, check=True)
    assert open_folder(tmp_path / "my data", 8).domain_names == ("first testers", "first trainers")


def test_a_class_called_train_is_a_class(write):
    assert open_folder(write(DOMAINS, ("bus", "train")), 8).classes == ("bus", "train")


def test_parts_in_the_place_of_classes_are_asked(write, capsys, tmp_path):
    said = refusal(write(CLASSES, ("test", "train")), capsys)
    assert "test, train would be read as classes, but are names of parts of a data set" in said
    (classes, links), (names, rename) = readings(said)
    assert classes == "bike, mug are the classes of one domain"
    assert list_folder(followed(links, tmp_path)).counts == {"shop": {"bike": 1, "mug": 1}}
    assert names == "they are classes"
    assert rename.startswith("rename them, mv ")


@pytest.mark.parametrize("above", [DOMAINS, ("only",)])
def test_one_class_is_an_error(write, capsys, tmp_path, above):
    said = refusal(write(above, ("images",)), capsys)
    assert "my data: one class only, images; there is nothing to tell apart" in said
    (classes, links), (domains, add) = readings(said)
    assert classes in ("amazon, dslr, web cam are the classes of one domain", "only is the one class of one domain")
    assert domains in ("amazon, dslr, web cam are the domains", "only is the one domain")
    assert add == "add the folders of the other classes beside images"
    if above == DOMAINS:
        assert list_folder(followed(links, tmp_path)).counts == {"shop": dict.fromkeys(DOMAINS, 1)}


def test_a_folder_of_data_sets_is_asked(write, capsys, tmp_path):
    said = refusal(write(("PACS", "VLCS"), ("art", "photo"), CLASSES), capsys)
    (whole, root), (nested, _) = readings(said)
    assert whole.endswith("my data/PACS is the data set, with the domains art, photo")
    assert nested == "art is a class with its pictures in folders of its own"
    assert [domain.name for domain in list_folder(followed(root, tmp_path)).files] == ["art", "photo"]


@pytest.mark.parametrize("levels", [(), (CLASSES,)])
def test_a_level_too_few_is_asked(write, capsys, levels):
    root = write(*levels)
    said = refusal(root, capsys)
    folder = root / "bike" if levels else root
    assert "<root>/<domain>/<class>/<image>" in said
    (holding, _), (domain, place) = readings(said.replace("Which", "\nWhich"))[-2:]
    assert holding == f"{folder} is a class"
    assert domain == f"{folder} is a domain"
    assert "NAME_OF_THE_CLASS" in place
    assert f"--data-dir '{folder.parent}'" in place or f"--data-dir {folder.parent} " in place


def test_pictures_beside_folders_of_a_class_keep_theirs_in_it(write):
    root = write(("amazon", "dslr"), CLASSES)
    (root / "amazon" / "mug" / "red").mkdir()
    (root / "amazon" / "mug" / "red" / "y.png").write_bytes((root / "dslr/mug/x.png").read_bytes())
    assert open_folder(root, 8).domains[0].targets.tolist() == [0, 1, 1]


def test_a_published_set_says_how_a_folder_of_another_name_opens(write, capsys, tmp_path):
    """PACS's own archive has its domains in a folder `kfold`."""
    root = write(("kfold",), ("art_painting", "photo"), CLASSES).rename(tmp_path / "PACS")
    options = ["--dataset", "PACS", "--data-dir", str(root), "--model", "squeezenet1_1"]
    assert main(["compare", *options, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"--data-dir {root / 'kfold'} " in said
    assert "PACS is recognised by its folder's name; open other folders with --dataset folder" in said
    assert open_folder(root / "kfold", 8).domain_names == ("art_painting", "photo")


def test_ambiguous_names_of_domains_are_refused(write, capsys):
    assert "domains a and a+b cannot be told apart in targets" in refusal(write(("a", "b", "a+b"), CLASSES), capsys)


@pytest.fixture
def run(tmp_path):
    network = build_network("small_conv", (3, 8, 8), 2, dropout=0.0, seed=0)
    domain = Domain("art", np.zeros((2, 3, 8, 8), dtype=np.uint8), np.arange(2))
    dataset = DomainDataset("mine", (domain,), CLASSES, "small_images", "x")
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", network, network.state_dict(), "small_conv", "erm", dataset, {})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("levels", "scored"),
    [
        ((DOMAINS, ("images",), CLASSES), list(DOMAINS)),
        ((DOMAINS, ("train", "val"), CLASSES), list(DOMAINS)),
        ((("train", "val"), DOMAINS, CLASSES), list(DOMAINS)),
        ((CLASSES, DOMAINS, CLASSES), list(DOMAINS)),
    ],
)
def test_evaluate_asks_too(write, run, capsys, tmp_path, levels, scored):
    assert main(["evaluate", str(run), "--data-dir", str(write(*levels))]) == 1
    said = capsys.readouterr().err
    assert "read as a class, but it holds folders" in said
    (_, first), *_ = readings(said)
    assert main(["evaluate", str(run), "--data-dir", str(followed(first, tmp_path))]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(scored)]  # measures follow
    assert [line.partition(":")[0] for line in lines] == scored
    assert all(line.endswith("% of 2 images") for line in lines)


def test_evaluate_scores_parts_by_their_names(write, run, capsys):
    assert main(["evaluate", str(run), "--data-dir", str(write(("test", "train"), CLASSES))]) == 0
    assert re.findall(r"^(\w+):", capsys.readouterr().out, re.M) == ["test", "train"]


def test_evaluate_takes_fewer_classes_but_no_pictures_alone(write, run, capsys):
    root = write(("amazon",), ("mug",))
    [domain] = labelled_images(root, CLASSES)
    assert domain.labels.tolist() == [1]
    assert [domain.name for domain in labelled_images(root / "amazon", CLASSES)] == ["amazon"]
    with pytest.raises(FolderError, match=r"no images in it; expected <class>/<image> or <domain>/<class>/<image>"):
        labelled_images(root / "amazon" / "mug", CLASSES)
