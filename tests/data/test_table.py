"""Tables of one's own: what columns are taken for, what is wrong with them, and what their fingerprint covers."""

import subprocess
import sys
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from shared_data import SHARED
from shiftproof.base.field_error import FieldError
from shiftproof.cli import main
from shiftproof.data import DATASETS, TableFile, look_at_table, open_table, split_domain
from shiftproof.data import table_file as reading

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
HEART = SHARED / "data" / "HeartDisease" / "heart.csv"


def rows(count=12, **changed):
    """Return lines of a table with two sites; ``changed`` has lines by "r" and their number."""
    lines = ["site,kind,dose,colour,extra"]
    for i in range(count):
        lines.append(f"{'ab'[i % 2]},{'xy'[i // 2 % 2]},{i / 4},{['red', 'blue', ''][i % 3]},{i}")
    for row, line in changed.items():
        lines[int(row[1:])] = line
    return "\n".join(lines) + "\n"


@pytest.fixture
def table(tmp_path):
    """A function that writes a table and describes it."""

    def write(text=None, name="trial.csv", **described):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(rows() if text is None else text, encoding="utf-8")
        return TableFile(**{"file": file, "domain": "site", "labels": ("kind",), **described})

    return write


def test_columns_are_numbers_if_all_their_values_are(table):
    opened = open_table(table("\ufeff" + rows()))
    assert (opened.name, opened.kind, opened.task) == ("trial", "vectors", "classification")
    assert (opened.domain_names, opened.classes) == (("a", "b"), ("x", "y"))
    assert [(column.name, column.categories) for column in opened.columns] == [
        ("dose", ()), ("colour", ("blue", "red")), ("extra", ())
    ]  # fmt: skip
    a, b = opened.domains
    np.testing.assert_array_equal(a.inputs[:3], [[0, 1, 0], [0.5, np.nan, 2], [1, 0, 4]])
    np.testing.assert_array_equal(b.inputs[:, 2], [1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(a.targets, [0, 1, 0, 1, 0, 1])
    assert a.groups is None


def test_features_are_chosen_in_their_order_and_may_declare_a_type(table):
    opened = open_table(table(features=("extra:category", "dose:number")))
    assert [column.name for column in opened.columns] == ["extra", "dose"]
    assert opened.columns[0].categories == tuple(sorted(map(str, range(12))))
    np.testing.assert_array_equal(opened.domains[1].inputs[:, 1], [0.25, 0.75, 1.25, 1.75, 2.25, 2.75])


def test_a_name_with_a_colon_is_a_name(table):
    text = rows().replace("dose", "dose:number")
    assert [column.name for column in open_table(table(text, features=("dose:number",))).columns] == ["dose:number"]
    opened = open_table(table(text, features=("dose:number:category",)))
    assert len(opened.columns[0].categories) == 12


def test_a_column_without_a_name_is_left_out(table):
    text = "\n".join(f"{i}{line}" if i else line for i, line in enumerate("," + line for line in rows().splitlines()))
    assert [column.name for column in open_table(table(text)).columns] == ["dose", "colour", "extra"]


def test_a_column_that_turns_out_to_be_of_texts_late_is_of_texts(table, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 256)
    monkeypatch.setattr(reading, "_ROWS_IN_BLOCK", 2)
    count = 600
    text = rows(count, r600="b,y,3.5,red,many")
    opened = open_table(table(text))
    assert len(opened.columns[2].categories) == count
    extra = [opened.columns[2].categories[int(code)] for code in opened.domains[1].inputs[:, 2]]
    assert extra == [str(i) for i in range(1, count - 1, 2)] + ["many"]
    np.testing.assert_array_equal(opened.domains[0].inputs[:, 0], np.arange(0, count, 2) / 4)
    with pytest.raises(FieldError, match=r"trial\.csv: row 600: column extra is 'many', and must be a number"):
        open_table(table(text, features=("extra:number",)))


def test_domains_and_classes_are_as_they_are_written(table):
    text = rows().replace("\na,", "\n007,").replace("\nb,", "\n7,").replace(",x,", ",10,").replace(",y,", ",9,")
    opened = open_table(table(text))
    assert (opened.domain_names, opened.classes) == (("007", "7"), ("9", "10"))


def test_parquet_is_as_csv(table, tmp_path):
    described = table()
    columns = {
        "site": arrow.array(list("ab") * 6).dictionary_encode(),
        "kind": list("xxyy") * 3,
        "dose": arrow.array([i / 4 for i in range(12)], arrow.float32()),
        "colour": ["red", "blue", None] * 4,
        "extra": list(range(12)),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "trial.parquet")
    again = open_table(replace(described, file=tmp_path / "trial.parquet"))
    assert again.fingerprint == open_table(described).fingerprint
    np.testing.assert_array_equal(again.domains[0].inputs, open_table(described).domains[0].inputs)


def _parquet(tmp_path, **columns):
    sites = {"site": ["a"] * 5 + ["b"] * 5, "kind": list("xy") * 5}
    parquet.write_table(arrow.table(sites | columns), tmp_path / "t.parquet")
    return TableFile(tmp_path / "t.parquet", "site", ("kind",))


def test_columns_of_parquet_have_their_types(tmp_path):
    described = _parquet(
        tmp_path,
        truth=[True, False, None, True, True] * 2,
        small=arrow.array([1, 2, 3, None, 5] * 2, arrow.int8()),
        half=arrow.array([0.5] * 10, arrow.float16()),
        codes=["1", "2", "", "1", None] * 2,
        nothing=arrow.nulls(10),
    )
    opened = open_table(described)
    assert [column.categories for column in opened.columns] == [(), (), (), ("1", "2"), ()]
    np.testing.assert_array_equal(
        opened.domains[0].inputs,
        np.array(
            [
                [1, 1, 0.5, 0, np.nan],
                [0, 2, 0.5, 1, np.nan],
                [np.nan, 3, 0.5, np.nan, np.nan],
                [1, np.nan, 0.5, 0, np.nan],
                [1, 5, 0.5, np.nan, np.nan],
            ]
        ),
    )
    typed = open_table(replace(described, features=("codes:number", "truth:category")))
    assert [column.categories for column in typed.columns] == [(), ("False", "True")]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([datetime(2026, 1, 1)] * 10, r"timestamp\[us\]"), ([[1, 2]] * 10, r"list<"), ([b"x"] * 10, "binary")],
)
def test_columns_of_other_types_are_refused(tmp_path, values, kind):
    with pytest.raises(
        FieldError, match=rf"t\.parquet: column other is of type {kind}.*, and must be of numbers or texts"
    ):
        open_table(_parquet(tmp_path, other=values))
    open_table(replace(_parquet(tmp_path, other=values, dose=range(10)), features=("dose",)))


@pytest.mark.parametrize(
    ("text", "described", "message"),
    [
        (None, {"domain": "sites"}, "unknown column 'sites'. Did you mean site?"),
        (None, {"labels": ("knd",)}, "unknown column 'knd'. Did you mean kind?"),
        (None, {"features": ("doses",)}, "unknown column 'doses'. Did you mean dose?"),
        (None, {"features": ("dose", "dose:number")}, "column dose is named twice"),
        (None, {"features": ("dose", "kind")}, "column kind is a feature, and says the domain or the label too"),
        (None, {"labels": ("site",)}, "column site says the domain and the label"),
        (None, {"features": ("colour:number",)}, "row 1: column colour is 'red', and must be a number"),
        (rows(r3="a,,1,red,2"), {}, "row 3 has no label: its column kind is empty (1 such rows, which"),
        (rows(r3=",x,1,red,2"), {}, "row 3 has no domain: its column site is empty"),
        (rows(r4="b,y,inf,red,3"), {}, "row 4: column dose is infinite"),
        (rows(r4="b,y,1e39,red,3"), {}, "row 4: column dose is infinite or beyond the range of float32"),
        (rows(r4="b,y,1,red"), {}, "row 4 has 4 values, and the header 5 columns"),
        (rows(r7="c,x,1,red,6"), {}, "row 7: domain c of column site has 1 row; a domain needs 5 or more"),
        (rows().replace("\nb,", "\na,"), {}, "column site names one domain, a; two are needed or more"),
        (rows().replace(",y,", ",x,"), {}, "it has 1 class(es)"),
        (rows().replace("extra", "dose"), {}, "it has 2 columns called dose; give every column its own name"),
        (None, {"labels": ("colour",), "task": "regression"}, "row 1: column colour is 'red', and must be a number"),
        (
            rows(r3="a,x,inf,red,2"),
            {"labels": ("dose",), "task": "regression"},
            "row 3 has no finite label: its column",
        ),
        (None, {"labels": ("dose", "extra"), "task": "multilabel"}, "row 2: column dose is 0.25, and must be 1 where"),
        (None, {"id": "ids"}, "unknown column 'ids'. Did you mean"),
        (None, {"id": "dose", "features": ("dose",)}, "column dose is a feature, and names the rows too"),
        (None, {"id": "kind"}, "column kind names the rows, and says the domain or the label too"),
        (None, {"id": "colour"}, "row 3 has no id: its column colour is empty"),
        (rows(r5="a,x,1,red,2", r9="a,x,1,red,7"), {"id": "extra"}, "rows 3 and 5 have one id in column extra: '2'"),
        (rows().splitlines()[0], {}, "it has no rows"),
        ("", {}, "its first line names no columns"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table, text, described, message):
    with pytest.raises(FieldError) as raised:
        open_table(table(text, **described))
    assert f"trial.csv: {message}" in str(raised.value).replace("data set trial: ", "")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_table_is_refused(table, tmp_path):
    with pytest.raises(FieldError, match=r"absent\.csv: there is no such file"):
        open_table(TableFile(tmp_path / "absent.csv", "site", ("kind",)))
    with pytest.raises(FieldError, match=r"trial\.xlsx: a table is a file in \.csv \.parquet \.pq, not in \.xlsx"):
        open_table(table(name="trial.xlsx"))
    with pytest.raises(FieldError, match=r"trial\.parquet: it is not Parquet"):
        open_table(table(name="trial.parquet"))
    described = table()
    described.file.write_bytes(rows().encode().replace(b"red", b"r\xe9d"))
    with pytest.raises(FieldError, match=r"trial\.csv: it is not CSV in UTF-8"):
        open_table(described)


def test_without_pyarrow_the_extra_is_named(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FieldError, match=r"pyarrow is not installed: pip install 'shiftproof\[data\]'"):
        open_table(table())


def test_rows_without_a_label_are_left_out_and_counted(table):
    text = rows(14, r3="a,,inf,green,2", r6="b,,5,,5")
    opened = open_table(table(text, missing_labels="drop"))
    assert (opened.left_out, [len(domain) for domain in opened.domains]) == (2, [6, 6])
    assert opened.columns[1].categories == ("blue", "red")  # green is of a row that is left out
    with pytest.raises(FieldError, match="row 8: column dose is infinite"):  # the file's row
        open_table(table(rows(14, r3="a,,1,green,2", r8="b,x,inf,red,7"), missing_labels="drop"))


def test_a_class_of_one_domain_is_told(table):
    with pytest.warns(
        UserWarning, match=r"trial\.csv: classes of column kind that occur in one domain only .*: z in b"
    ):
        open_table(table(rows(r2="b,z,1,red,1")))


def test_a_quantity_and_several_labels(table):
    quantity = open_table(table(labels=("dose",), task="regression"))
    assert (quantity.classes, quantity.domains[0].targets.dtype) == (("dose",), np.float32)
    np.testing.assert_array_equal(quantity.domains[1].targets, [0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    assert [column.name for column in quantity.columns] == ["kind", "colour", "extra"]
    text = "site,u,v,w\n" + "".join(f"{'ab'[i % 2]},{i % 3 == 0:d},{i > 4:d},{i}\n" for i in range(12))
    labels = open_table(table(text, labels=("v", "u"), task="multilabel"))
    np.testing.assert_array_equal(labels.domains[0].targets, [[0, 1], [0, 0], [0, 0], [1, 1], [1, 0], [1, 0]])


def test_rows_of_a_group_stay_on_one_side(table):
    text = rows(24).replace("extra", "patient")
    lines = [f"{line.rpartition(',')[0]},p{i // 4}" if i else line for i, line in enumerate(text.splitlines())]
    opened = open_table(table("\n".join(lines), group="patient"))
    for i, domain in enumerate(opened.domains):
        split = split_domain(domain, "grouped", 0, i)
        assert not set(domain.groups[split.in_]) & set(domain.groups[split.out])
    assert [column.name for column in opened.columns] == ["dose", "colour"]


def test_rows_are_named_by_their_numbers_or_by_a_column(table):
    numbered = open_table(table(rows(14, r3="a,,1,red,2"), features=("dose",), missing_labels="drop"))
    assert [domain.ids.tolist() for domain in numbered.domains] == [
        ["1", "5", "7", "9", "11", "13"], ["2", "4", "6", "8", "10", "12", "14"]
    ]  # fmt: skip
    assert numbered.domains[0].ids.dtype == "U2"
    text = "\n".join(f"{line},p{13 - i:02}" if i else f"{line},patient" for i, line in enumerate(rows().splitlines()))
    named = open_table(table(text, id="patient"))
    assert [domain.ids.tolist() for domain in named.domains] == [
        ["p12", "p10", "p08", "p06", "p04", "p02"], ["p11", "p09", "p07", "p05", "p03", "p01"]
    ]  # fmt: skip
    assert [column.name for column in named.columns] == ["dose", "colour", "extra"]


def test_names_of_rows_are_no_part_of_the_data(table):
    chosen = {"features": ("dose", "colour")}
    fingerprint = open_table(table(**chosen)).fingerprint
    assert open_table(table(id="extra", **chosen)).fingerprint == fingerprint
    assert open_table(table(rows().replace(",0\n", ",99\n"), id="extra", **chosen)).fingerprint == fingerprint
    assert fingerprint == "f846d3544127bb4d"  # of the version before rows had names


def test_the_fingerprint_is_of_what_is_used(table, tmp_path):
    chosen = {"features": ("dose", "colour")}
    before = open_table(table(**chosen)).fingerprint
    assert open_table(table(name="elsewhere/trial.csv", **chosen)).fingerprint == before
    assert open_table(table(rows(r3="a,y,0.5,,999"), **chosen)).fingerprint == before  # of an unused column
    found = []
    for text, described in [
        (rows(r3="a,y,0.6,,2"), chosen),
        (rows(r3="a,y,0.5,red,2"), chosen),
        (rows(r3="a,x,0.5,,2"), chosen),
        (rows().replace("\nb,", "\nc,"), chosen),
        (rows().replace("blue", "azure"), chosen),
        (rows().replace(",y,", ",z,"), chosen),
        (rows(13), chosen),
        (None, {"features": ("colour", "dose")}),
        (None, {"features": ("dose",)}),
        (None, {"features": ("dose:category", "colour")}),
        (None, {**chosen, "group": "extra"}),
        (None, {**chosen, "labels": ("extra",), "task": "regression"}),
        (None, {}),
    ]:
        found.append(open_table(table(text, **described)).fingerprint)
    assert len({before, *found}) == 1 + len(found)


# Pictures


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A table of twelve pictures, of which one is named by its whole path."""
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    folder = tmp_path / "scans"
    (folder / "png").mkdir(parents=True)
    lines = ["site,kind,file"]
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (10, 10), dtype=np.uint8)).save(folder / "png" / f"{i}.png")
        name = folder / "png" / f"{i}.png" if i == 3 else f"png/{i}.png"
        lines.append(f"{'ab'[i % 2]},{'xy'[i // 2 % 2]},{name}")
    (folder / "scans.csv").write_text("\n".join(lines))
    return TableFile(folder / "scans.csv", "site", ("kind",), image="file")


def test_pictures_are_those_that_the_rows_name(pictures):
    assert look_at_table(pictures).kind == "small_images"
    opened = open_table(pictures)
    assert (opened.kind, opened.input_shape, opened.columns) == ("small_images", (3, 10, 10), None)
    for domain, numbers in zip(opened.domains, (range(0, 12, 2), range(1, 12, 2)), strict=True):
        for row, number in zip(domain.inputs, numbers, strict=True):
            pixels = np.asarray(Image.open(pictures.file.parent / "png" / f"{number}.png"))
            np.testing.assert_array_equal(row, np.stack([pixels] * 3))
    assert open_table(pictures, 8, "photographs").domains[0].inputs.shape == (6, 3, 8, 8)


def test_rows_of_pictures_are_named_too(pictures):
    assert open_table(pictures).domains[1].ids.tolist() == ["2", "4", "6", "8", "10", "12"]
    named = open_table(replace(pictures, id="file"))
    assert named.domains[0].ids.tolist() == [f"png/{i}.png" for i in range(0, 12, 2)]
    assert named.fingerprint == open_table(pictures).fingerprint


def test_two_tables_of_one_folder_do_not_drop_each_others_images(pictures):
    other = replace(pictures, file=pictures.file.with_name("half.csv"))
    other.file.write_text("\n".join(pictures.file.read_text().splitlines()[:11]))
    open_table(pictures), open_table(other)
    cache = pictures.file.parents[1] / "cache"
    assert len(list(cache.rglob("*.npy"))) == 2


def test_a_quantity_of_pictures(pictures):
    text = pictures.file.read_text().replace(",x,", ",1.5,").replace(",y,", ",2.5,")
    pictures.file.write_text(text)
    opened = open_table(replace(pictures, task="regression"))
    np.testing.assert_array_equal(opened.domains[0].targets, [1.5, 2.5] * 3)


def test_a_picture_that_is_missing_or_broken_is_named_with_its_row(pictures):
    whole = pictures.file.read_text()
    pictures.file.write_text(whole.replace("png/5.png", "png/none.png"))
    with pytest.raises(
        FieldError, match=r"scans\.csv: row 6: there is no picture .*none\.png, which column file names"
    ):
        open_table(pictures)
    pictures.file.write_text(whole.replace("png/5.png", ""))
    with pytest.raises(FieldError, match=r"scans\.csv: row 6 names no picture: its column file is empty"):
        open_table(pictures)
    pictures.file.write_text(whole)
    (pictures.file.parent / "png" / "7.png").write_bytes(b"none")
    with pytest.raises(FieldError, match=r"scans\.csv: row 8, column file: .*7\.png: not an image$"):
        open_table(pictures)


def test_the_fingerprint_of_pictures_is_of_their_pixels(pictures):
    before = open_table(pictures).fingerprint
    file = pictures.file.parent / "png" / "4.png"
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(file)
    assert open_table(pictures).fingerprint != before


# Checks


def test_data_check_counts_rows_and_tells_what_columns_hold(table, capsys):
    described = table(rows(r3="a,,1,green,2"))
    options = ["--domain", "site", "--label", "kind", "--features", "dose", "colour", "--missing-labels", "drop"]
    assert main(["data", "check", str(described.file), *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(described.file),
        "",
        "class  a  b  all",
        "x      3  3    6",
        "y      2  3    5",
        "all    5  6   11",
        "",
        "column        values  missing",
        "dose       0 to 2.75        0",
        "colour  2 categories        3",
        "",
        "rows without a label, left out: 1",
    ]
    assert (
        main(["data", "check", str(described.file), "--domain", "site", "--label", "dose", "--task", "regression"]) == 0
    )
    assert ["b", "6", "1.5"] in map(str.split, capsys.readouterr().out.splitlines())
    assert main(["data", "check", str(described.file), "--domain", "site"]) == 1
    assert "the data set table needs labels" in capsys.readouterr().err
    assert main(["data", "check", str(described.file), *options[:4], "--dataset", "pacs"]) == 1
    assert "--dataset is of folders" in capsys.readouterr().err


# Real data, and much of it


def test_real_patients_without_a_label_are_left_out():
    if not HEART.is_file():
        pytest.skip("the table of heart disease is not here")
    described = TableFile(HEART, "domain", ("thalach",), "regression", missing_labels="drop")
    opened = open_table(described)
    assert (sum(len(domain) for domain in opened.domains), opened.left_out) == (865, 55)
    with pytest.raises(
        FieldError, match=r"heart\.csv: row 593 has no label: its column thalach is empty \(55 such rows"
    ):
        open_table(replace(described, missing_labels="error"))
    own = open_table(TableFile(HEART, "domain", ("y",), features=("age", "sex:category")))
    embedded = DATASETS["heart_disease"].open(None, None)
    for mine, known in zip(own.domains, embedded.domains, strict=True):
        np.testing.assert_array_equal(mine.targets, known.targets)
        np.testing.assert_array_equal(mine.inputs, known.inputs[:, :2])


OPENING = """
import re, sys
from pathlib import Path
from shiftproof.data import TableFile, open_table
opened = open_table(TableFile(Path(sys.argv[1]), "site", ("kind",)))
print(sum(len(domain) for domain in opened.domains), len(opened.columns))
# Its own peak: that of getrusage begins with the size of the process that started it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
def test_a_million_rows_open_within_a_gigabyte(tmp_path):
    random, file = np.random.default_rng(0), tmp_path / "large.csv"
    header = ["site", "kind", *(f"n{i}" for i in range(20)), *(f"c{i}" for i in range(8))]
    with file.open("w") as stream:
        stream.write(",".join(header) + "\n")
        for _ in range(100):
            numbers = [",".join(map(repr, row)) for row in random.normal(size=(10_000, 20)).tolist()]
            codes = random.integers(0, 50, (10_000, 10)).tolist()
            stream.writelines(
                f"s{site % 7},{kind % 3},{row},{','.join(f'k{code}' for code in others)}\n"
                for row, (site, kind, *others) in zip(numbers, codes, strict=True)
            )
    done = subprocess.run([sys.executable, "-c", OPENING, file], capture_output=True, text=True, check=True)
    rows_and_columns, peak = done.stdout.splitlines()
    assert rows_and_columns == "1000000 28"
    assert int(peak) < 1e9
