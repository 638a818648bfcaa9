"""Tables for a model that was trained on some columns, and files of labels."""

import numpy as np
import pytest
from PIL import Image

from shiftproof.data import Column, FolderError, labelled_files, pictures_below, read_new_rows

COLUMNS = (Column("age"), Column("site", ("1", "2", "north")))
CLASSES = ("cat", "dog")


def _table(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("start", ["", "\N{BYTE ORDER MARK}"])
def test_numbers_and_categories_are_read_in_the_models_order(start, tmp_path):
    text = f"{start}site,note,age\nnorth,x,3\n2.0,x, 4.5 \n,x,  \n01,x,1e2\nsouth,x,0\n"
    rows = read_new_rows(_table(tmp_path, text), COLUMNS)
    np.testing.assert_array_equal(rows.vectors, [[3, 2], [4.5, 1], [np.nan, np.nan], [100, 0], [0, 3]])
    assert rows.errors == {}
    assert rows.unseen == {"site": {"south": 1}}


@pytest.mark.parametrize("value", ["tall", "inf", "-1e39", '"1,5"', "1_000"])
def test_what_is_no_number_is_an_error_of_its_row(value, tmp_path):
    rows = read_new_rows(_table(tmp_path, f"age,site\n1,1\n{value},2\n"), COLUMNS)
    bare = value.strip('"')
    assert rows.errors == {1: f"column age is '{bare}', and must be a finite number"}
    np.testing.assert_array_equal(rows.vectors[0], [1, 0])


def test_a_code_that_only_python_takes_for_a_number_is_no_known_category(tmp_path):
    rows = read_new_rows(_table(tmp_path, "age,site\n1,1_0\n1,10.0\n"), (Column("age"), Column("site", ("7", "10"))))
    np.testing.assert_array_equal(rows.vectors[:, 1], [2, 1])
    assert rows.unseen == {"site": {"1_0": 1}}


def test_parquet_holds_what_csv_holds(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"age": [1, None, 3], "site": [1.0, 2.0, None], "note": [[1], [2], [3]]})
    parquet.write_table(table, tmp_path / "table.PARQUET")
    rows = read_new_rows(tmp_path / "table.PARQUET", COLUMNS)
    np.testing.assert_array_equal(rows.vectors, [[1, 0], [np.nan, 1], [3, np.nan]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ages,site\n1,1\n", "No column 'age'. Did you mean ages"),
        ("", "No column 'age'. No column 'site'. Its columns are none"),
        ("age,site,age\n1,1,1\n", "column 'age' is there 2 times"),
        ("age,site\n1\n", "line 2: 1 fields, but the first line names 2"),
        ("age,site\n", "has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_new_rows(_table(tmp_path, text), COLUMNS)


def test_a_table_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"age,site\n1,\xe9t\xe9\n")
    with pytest.raises(ValueError, match=r"table\.csv, after line \d: .*codec can't decode"):
        read_new_rows(tmp_path / "table.csv", COLUMNS)


# Labels


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "flat"
    for name in ("b.png", "a.png", "deep/c.png", "d.JPG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)
    (folder / ".hidden.png").touch()
    return folder


def test_pictures_below_a_folder_are_in_order_and_begin_as_it_is_given(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(map(str, pictures_below(flat.relative_to(tmp_path)))) == [
        "flat/a.png", "flat/b.png", "flat/d.JPG", "flat/deep/c.png"
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match="no images in it or below"):
        pictures_below(tmp_path / "empty")


def test_labels_are_those_of_the_file(flat, tmp_path):
    labels = _table(tmp_path, "note,file,class\nx,deep/c.png,cat\nx,b.png,dog\nx,a.png,cat\n")
    files, unlabelled = labelled_files(flat, labels, CLASSES)
    assert files.name == "flat"
    assert files.paths == (flat / "a.png", flat / "b.png", flat / "deep" / "c.png")
    assert files.labels.tolist() == [0, 1, 0]
    assert unlabelled == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\nb.png,dog\n", "No column 'file'. No column 'class'. .*Its columns are a.png, cat"),
        ("file,class\n", "has no rows"),
        ("file,class\na.png,cat\nb.png,dgo\n", "row 2: unknown class 'dgo'. Did you mean dog"),
        ("file,class\na.png,\n", "row 1: no class"),
        ("file,class\na.png,cat\n./a.png,dog\n", r"row 2: \./a\.png has a class already, from row 1"),
        ("file,class\nb.png,cat\nx.png,dog\ny.png,cat\n", r"are missing: .*x\.png \(row 2\), .*y\.png \(row 3\)$"),
        ("file,class\n" + "".join(f"{i}.png,cat\n" for i in range(9)), r"4\.png \(row 5\) and 4 more$"),
    ],
)
def test_a_file_of_labels_that_does_not_fit_is_refused(text, message, flat, tmp_path):
    with pytest.raises(ValueError, match=message):
        labelled_files(flat, _table(tmp_path, text), CLASSES)
