"""Feature sets: what is written is opened, and what is not whole is not."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from shiftproof.base.field_error import FieldError
from shiftproof.base.files import locked
from shiftproof.cli import main
from shiftproof.data import (
    DATASETS,
    Encoder,
    FeatureSetError,
    from_arrays,
    is_feature_set,
    open_features,
    split_domain,
    write_features,
)

ENCODER = Encoder(
    "shots", "0123456789abcdef", "squeezenet1_1", "w.safetensors", "98216fad", (3, 8, 8), "imagenet", "0.1"
)
SIZE = 5


def _pictures(task="classification", groups=True):
    random = np.random.default_rng(0)
    targets = {
        "classification": lambda: random.choice(["cat", "dog"], 12),
        "multilabel": lambda: random.integers(0, 2, (12, 3)),
        "regression": lambda: random.normal(size=12),
    }[task]
    domains = {
        name: (random.integers(0, 256, (12, 3, 8, 8), dtype=np.uint8), targets()) for name in ("door/a", "..", "yard")
    }
    numbered = {name: np.arange(12) // 3 for name in domains} if groups else None
    return from_arrays("shots", domains, task=task, groups=numbered)


def _features(domain, size=SIZE):
    """Yield numbers that depend on the pictures, in two parts."""
    features = domain.inputs.reshape(len(domain), -1)[:, :size].astype(np.float32) / 7
    yield features[:5]
    yield features[5:]


@pytest.fixture
def written(tmp_path):
    """A function that writes a feature set and returns its folder."""

    def write(name="set", source=None, encoder=ENCODER, encode=_features):
        write_features(tmp_path / name, source or _pictures(), encoder, SIZE, encode)
        return tmp_path / name

    return write


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("groups", [True, False])
def test_what_is_written_is_opened(written, task, groups):
    source = _pictures(task, groups)
    folder = written(source=source)
    opened = DATASETS["features"].open(folder, None)
    assert (opened.name, opened.kind, opened.task) == ("shots_squeezenet1_1", "vectors", task)
    assert (opened.classes, opened.domain_names) == (source.classes, ("door/a", "..", "yard"))
    for was, domain in zip(source.domains, opened.domains, strict=True):
        np.testing.assert_array_equal(domain.inputs, np.concatenate(list(_features(was))))
        assert (domain.inputs.dtype, domain.targets.dtype) == (np.float32, was.targets.dtype)
        assert isinstance(domain.inputs, np.memmap)  # so that no more of it is in memory than is looked at
        np.testing.assert_array_equal(domain.targets, was.targets)
        np.testing.assert_array_equal(domain.groups, was.groups)
        split, split_was = (split_domain(one, "grouped" if groups else "random", 1, 0) for one in (domain, was))
        np.testing.assert_array_equal(split.out, split_was.out)
    assert opened.encoder == (
        "squeezenet1_1, weights w.safetensors (98216fad), pictures of 8 x 8 pixels, normalisation imagenet"
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == [".set.lock", "set"]


def test_the_fingerprint_is_of_the_content(written):
    source = _pictures()
    first = open_features(written("a", source)).fingerprint
    assert open_features(written("b", source, replace(ENCODER, version="0.2", weights="moved"))).fingerprint == first
    one = source.domains[1]
    targets, groups = one.targets.copy(), one.groups.copy()
    targets[3], groups[3] = 1 - targets[3], 99
    changed = [
        replace(source, classes=("cat", "dogs")),
        replace(source, domains=(*source.domains[:2], replace(source.domains[2], name="garden"))),
        *(
            replace(source, domains=(source.domains[0], other, source.domains[2]))
            for other in (replace(one, targets=targets), replace(one, groups=groups), replace(one, groups=None))
        ),
    ]
    found = [open_features(written(f"c{i}", other)).fingerprint for i, other in enumerate(changed)]

    def nudged(domain):
        for part in _features(domain):
            yield np.nextafter(part, np.float32(np.inf)) if domain.name == "yard" else part

    found.append(open_features(written("d", source, encode=nudged)).fingerprint)
    assert len({first, *found}) == 7


def test_what_exists_is_not_overwritten(written, tmp_path):
    folder = written()
    before = open_features(folder).fingerprint
    with pytest.raises(FileExistsError, match="set is a feature set already; delete it to encode into it"):
        written()
    assert open_features(folder).fingerprint == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("notes", "file", "link"):
        with pytest.raises(FileExistsError, match=f"{name} exists already; name another to encode into it"):
            written(name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_others_that_is_in_the_way_is_kept(written, tmp_path):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "thesis.tex").write_text("mine")
    with pytest.raises(OSError, match=r"set\.partial"):
        written()
    assert (tmp_path / "set.partial" / "thesis.tex").read_text() == "mine"


def test_one_process_writes_a_set_at_a_time(written, tmp_path):
    with locked(tmp_path / ".set.lock"), pytest.raises(FileExistsError, match="another process is encoding into it"):
        written()
    assert is_feature_set(written())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_encoding_leaves_nothing(written, tmp_path, error):
    def breaks(domain):
        yield from _features(domain)
        if domain.name == "yard":
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        written(encode=breaks)
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def test_more_than_the_disk_holds_is_refused_before_it_is_computed(tmp_path):
    with pytest.raises(OSError, match=r"the features take 1\d+\.\d\d GB, but .* has .* GB left"):
        write_features(tmp_path / "set", _pictures(), ENCODER, 10**15, lambda domain: pytest.fail("was computed"))
    assert not (tmp_path / "set.partial").exists()


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from shiftproof.data import Encoder, from_arrays, write_features
pictures = np.zeros((4, 3, 8, 8), dtype=np.uint8)
source = from_arrays("shots", {name: (pictures, [0, 1, 0, 1]) for name in "ab"}, kind="small_images")
def stops(domain):
    yield np.zeros((4, 5), dtype=np.float32)
    if domain.name == "b":
        print("here", flush=True)
        time.sleep(60)
encoder = Encoder("shots", "0", "m", None, None, (3, 8, 8), "half", "0.1")
write_features(Path(sys.argv[1]), source, encoder, 5, stops)
"""


def test_what_a_killed_encoding_left_is_named_and_replaced(written, tmp_path, capsys):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(FeatureSetError, match=r"set: no such folder; set\.partial beside it is what an interrupted"):
        open_features(tmp_path / "set")
    half = tmp_path / "set.partial"
    assert main(["data", "check", str(half)]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == f"shiftproof: error: {half} is half a feature set: it has no "
        "features.json, because encoding was interrupted; delete it and encode again"
    )
    assert len(open_features(written()).domains) == 3
    assert not half.exists()


def _cut(folder):
    path = folder / "1.features.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _flip(folder):
    path = folder / "2.targets.npy"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def _change(**facts):
    def change(folder):
        path = folder / "features.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"is a damaged feature set \(1\.features\.npy is not as it was written\); delete it and encode again"),
        (_flip, r"is a damaged feature set \(2\.targets\.npy is not as it was written\)"),
        (lambda folder: (folder / "0.groups.npy").unlink(), r"is a damaged feature set \(it lacks 0\.groups\.npy\)"),
        (
            lambda folder: (folder / "features.json").write_text("{"),
            r"is a damaged feature set \(features\.json: Expecting",
        ),
        (lambda folder: (folder / "features.json").write_text("[]"), r"\(features\.json states no format\)"),
        (_change(format=2), r"is a feature set of format 2, and this version of shiftproof reads 1; encode again"),
        (_change(encoder={}), r"is a damaged feature set \(KeyError: 'input_shape'\)"),
        (_change(sha256=[]), r"is a damaged feature set \(AttributeError: "),
        (_change(classes=["cat"]), r"is a damaged feature set \(ValueError: data set shots_squeezenet1_1: it has 1 cl"),
        (_change(domains=["a", "b", "c", "d"]), r"is a damaged feature set \(FileNotFoundError: "),
        (lambda folder: (folder / "features.json").unlink(), "is half a feature set: it has no features.json"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(written, capsys, damage, message):
    folder = written()
    damage(folder)
    with pytest.raises(FeatureSetError, match=message) as raised:
        open_features(folder)
    assert "\n" not in str(raised.value)
    assert main(["compare", "--dataset", "features", "--data-dir", str(folder)]) == 1
    assert f"error: {raised.value}" in capsys.readouterr().err


def test_what_is_no_feature_set_is_said(tmp_path):
    with pytest.raises(FeatureSetError, match=r"no feature set: it has no features\.json, which `shiftproof encode`"):
        open_features(tmp_path)
    with pytest.raises(FeatureSetError, match=r"absent: no such folder$"):
        open_features(tmp_path / "absent")
    with pytest.raises(FeatureSetError, match="needs a data folder: the one that `shiftproof encode` wrote"):
        open_features(None)
    with pytest.raises(FieldError, match="has no pictures: it takes no image size"):
        open_features(tmp_path, 64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(written, tmp_path, value):
    def overflows(domain):
        for i, part in enumerate(_features(domain)):
            part[2, 1] = value if (domain.name, i) == ("..", 1) else 0
            yield part

    with pytest.raises(ValueError, match=r"the features of picture 8 of domain \.\. are not finite"):
        written(encode=overflows)
    assert not (tmp_path / "set").exists()


def test_a_check_counts_rows_and_says_what_made_them(written, capsys):
    folder = written()
    assert main(["data", "check", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [str(folder), "", "class  door/a  ..  yard  all"]
    assert lines[5] == "all        12  12    12   36"
    assert lines[7:] == [
        "shots_squeezenet1_1: 5 features of squeezenet1_1, weights w.safetensors (98216fad), pictures of 8 x 8 pixels, "
        "normalisation imagenet",
        "its files are as they were written",
    ]
    assert main(["data", "check", str(folder), "--dataset", "PACS"]) == 1
    assert "--dataset is of folders of images, and of nothing else" in capsys.readouterr().err
