"""Tables, series and points: what is read is what was written, and what is wrong is named."""

import json
import sys

import numpy as np
import pytest

from scoresens import datasets
from scoresens.datasets.forms import IMAGES, Form, form_of

TABLE = 'height,"weight, kg",class\n1.5,50,a\n1.7,70,b\n1.9,60,a\n'


def written(folder, text, name="t.csv"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def loaded(folder, text, **options):
    return datasets.load(written(folder, text), label="class", **options)


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_table_is_standardised_and_given_back(tmp_path, start, end):
    found = loaded(tmp_path, start + TABLE.replace("\n", end))
    values = np.array([[1.5, 50], [1.7, 70], [1.9, 60]])
    by_hand = (values - [1.7, 60]) / [np.sqrt(0.08 / 3), np.sqrt(200 / 3)]
    np.testing.assert_allclose(found.images, by_hand, rtol=1e-6)
    assert found.images.dtype == np.float32 and found.name == "t"
    assert found.form.columns == ("height", "weight, kg") and found.form.kind == "points"
    np.testing.assert_allclose(found.form.restored(found.images), values, rtol=1e-6)
    moved = found.form.restored_change(found.images[1] - found.images[0])
    np.testing.assert_allclose(moved, [0.2, 20], rtol=1e-6)
    assert found.labels.tolist() == [0, 1, 0] and found.class_names == ("a", "b")


def test_the_scale_is_that_of_all_rows_whatever_is_kept(tmp_path):
    name = written(tmp_path, TABLE)
    whole = datasets.load(name, label="class")
    kept = datasets.prepare(datasets.DataSettings(name, classes=("a",), label="class"))
    assert kept.form == whole.form
    np.testing.assert_array_equal(kept.images, whole.images[[0, 2]])


@pytest.mark.parametrize(
    ("text", "columns", "classes"),
    [
        ("x,y,z,Class\n1,2,3,p\n2,3,5,q\n3,3,3,p\n", 3, ("p", "q")),
        ("target,x,y,z\n10,1,2,3\n9,2,3,5\n10,3,3,3\n", 3, ("9", "10")),
        ("x,y,target\n1,2,0.5\n2,3,1.5\n3,3,0.25\n", 3, ("all",)),
        ("x,target,label\n1,0,u\n2,1,v\n3,1,u\n", 2, ("u", "v")),
        ("x,y,z\n1,2,3\n2,3,5\n3,3,3\n", 3, ("all",)),
    ],
    ids=["words", "whole numbers", "other numbers", "two of them", "none"],
)
def test_a_label_is_chosen_by_its_name_and_said(tmp_path, text, columns, classes, recwarn):
    found = datasets.load(written(tmp_path, text))
    assert found.images.shape == (3, columns) and found.class_names == classes
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (len(classes) > 1)
    assert all("is taken as the label (2 classes)" in words for words in said)


def test_columns_keep_their_order_around_a_label_that_is_none(tmp_path):
    found = datasets.load(written(tmp_path, "x,class,y\n1,0.5,2\n2,1.5,3\n4,0.1,9\n"), label="")
    assert found.form.columns == ("x", "class", "y") and found.form.kind == "table"
    np.testing.assert_allclose(found.form.restored(found.images)[:, 1], [0.5, 1.5, 0.1], rtol=1e-6)


def test_parquet_and_csv_are_one_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    columns = {
        "a": [1, 2, 4],
        "b": [0.5, 0.25, 1.0],
        "c": [3.0, 1.0, 2.0],
        "class": ["u", "v", "u"],
    }
    table = pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    text = "a,b,c,class\n" + "".join(
        f"{','.join(map(str, row))}\n" for row in zip(*columns.values(), strict=True)
    )
    one = datasets.load(str(tmp_path / "t.parquet"), label="class")
    other = loaded(tmp_path, text)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.form == other.form and one.class_names == other.class_names
    for bad, message in (
        (
            {"a": [1.0, None, 2.0], "b": [1.0, 2.0, 3.0]},
            r"1 cells are missing, the first in row 2, column 'a'",
        ),
        ({"a": [[1], [2]], "b": [1, 2]}, r"column 'a' is of type list"),
    ):
        parquet.write_table(pyarrow.table(bad), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=rf"bad\.parquet: {message}"):
            datasets.load(str(tmp_path / "bad.parquet"))


def test_parquet_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresens\[tables\]'"):
        datasets.load(written(tmp_path, "PAR1", "t.parquet"))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("x,y,class\n", "it has no rows below its names"),
        ("x,y,class\n1,2,a\n", "it has 1 rows below its names: at least 2"),
        ("x,y,class\n1,2,a\n1,3,b\n2,oops,a\n", "row 3, column 'y' holds text, 'oops'"),
        ("x,y,class\n1,2,a\n2,1_000,b\n", "row 2, column 'y' holds text, '1_000'"),
        (
            "x,y,class\n1,,a\n2,NA,b\n,3,\n4,4,a\n",
            r"4 cells are missing, the first in row 1, column 'y' \('x' 1, 'y' 2, 'class' 1\)",
        ),
        ("x,y,class\n1,2,a\n2,nan,b\n", "1 cells are missing, the first in row 2, column 'y'"),
        ("x,y,class\n1,2,a\n1,3,b\n", r"column 'x' does not vary \(1 such\)"),
        ("x,y,class\n1,2,a\n2,3\n", "row 2 has 2 cells, where 3 columns are named"),
        ("x,y,class\n1,2,a\n2,3,4,b\n", "row 2 has 4 cells"),
        ("x,y,x,class\n1,2,3,a\n2,3,4,b\n", "two columns are named 'x'"),
        ("x,,class\n1,2,a\n2,3,b\n", "column 2 has no name"),
        ("1,2,3\n1,2,3\n", "its first line holds numbers"),
        ("x;y;class\n1;2;a\n2;3;b\n", "it has one column, 'x;y;class': separate columns by commas"),
        ("x,y,class\n1,2,a\n2,1e39,b\n", "row 2, column 'y' holds 1e39, beyond what float32"),
        ("x,y,class\n1,2,a\n2,-inf,b\n", "row 2, column 'y' holds -inf, beyond"),
        (f"x,y,class\n1,2,a\n2,{'9' * 400},b\n", "row 2, column 'y' holds 9+, beyond"),
        ('x,y,class\n1,2,a\n2,"3,b\n', "no CSV: unexpected end of data"),
        ("class\na\nb\na\n", "it has no column of numbers"),
        ("x,y,class\n1,2,a\n2,3,a\n", "column 'class' has 1 classes in 2 rows"),
        ("x,y,class\n1,2,a\n2,3,b\n", "column 'class' has 2 classes in 2 rows"),
        ("x,y\n1,2\n2,3\n", "no column 'class': its columns are x, y"),
        ("x,y,class\n1,2,a\n2,3,\xff\n".encode("latin-1"), r"is not in UTF-8: save it so"),
        (b"PAR1....PAR1", "it is a Parquet file: name it .parquet"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        loaded(tmp_path, text)
    assert "t.csv" in str(error.value)


def test_two_columns_of_text_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"row 1, column 'label' holds text, 'u'"):
        loaded(tmp_path, "x,class,label\n1,a,u\n2,b,v\n3,a,u\n")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"label": "class"}, "label is of a table in a file: leave it out for digits"),
        ("wine", {"label": "hue"}, "label is of a table in a file"),
        ("wine", {"window": 5}, "window and stride are of a series"),
        ("wine", {"stride": 2}, "stride is of a series, beside window"),
        ("moons", {"window": 5}, "window and stride are of a series"),
        ("sunspots", {"label": ""}, "label is of a table"),
        ("sunspots", {"window": 1}, "window must be at least 2"),
        ("sunspots", {"window": 309}, "309 rows have 1 windows of 309"),
        ("sunspots", {"stride": 0}, "stride at least 1, got 22, 0"),
    ],
)
def test_options_of_other_kinds_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(name, **options)


def test_pixels_are_of_images():
    with pytest.raises(ValueError, match="size is of images, and wine has rows"):
        datasets.prepare(datasets.DataSettings("wine", size=4))


# ------------------------------------------------------------------ series


@pytest.mark.parametrize("stride", [1, 3])
def test_windows_are_the_rows_in_their_order(tmp_path, stride):
    series = np.cumsum(np.random.default_rng(0).normal(size=(12, 2)), 0)
    text = "a,b\n" + "".join(f"{a!r},{b!r}\n" for a, b in series.tolist())
    found = datasets.load(written(tmp_path, text), window=4, stride=stride)
    assert found.form.kind == "series" and found.form.columns == ("a", "b")
    expected = [series[start : start + 4] for start in range(0, 9, stride)]
    np.testing.assert_allclose(found.form.restored(found.images), expected, atol=1e-5)
    np.save(tmp_path / "s.npy", series)
    other = datasets.load(str(tmp_path / "s.npy"), window=4, stride=stride)
    np.testing.assert_array_equal(other.images, found.images)
    assert other.form.columns == ("0", "1")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2, 2)), r"expected a series \[T\] or \[T, C\] of numbers, got float64"),
        (np.array(["a", "b"]), "expected a series"),
        (np.array([1.0, np.nan, 2.0]), "row 2, column 0 is missing, infinite, or beyond"),
        (np.array([1.0, 1e39, 2.0]), "row 2, column 0"),
        (np.ones(9), "column 0 does not vary"),
    ],
)
def test_an_array_that_is_no_series_is_named(tmp_path, array, message):
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(ValueError, match=rf"s\.npy: {message}"):
        datasets.load(str(tmp_path / "s.npy"), window=2)


# ------------------------------------------------------------------ what comes with the package


@pytest.mark.parametrize(
    ("name", "shape", "counts", "column", "mean"),
    [
        ("wine", (178, 13), [59, 71, 48], "proline", 746.8932584269663),
        ("breast-cancer", (569, 30), [357, 212], "mean radius", 14.127291739894552),
    ],
)
def test_the_tables_are_the_known_ones(name, shape, counts, column, mean):
    """Means and counts as scikit-learn's copies have them."""
    found = datasets.load(name)
    assert found.images.shape == shape and np.bincount(found.labels).tolist() == counts
    assert found.form.mean[found.form.columns.index(column)] == pytest.approx(mean, rel=1e-12)
    np.testing.assert_allclose(found.images.astype(float).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.images.astype(float).std(0), 1, atol=1e-6)


def test_the_sunspots_are_the_known_ones():
    found = datasets.load("sunspots")
    values = found.form.restored(found.images)[..., 0]
    assert found.images.shape == (288, 22, 1)
    np.testing.assert_allclose(values[0, :4], [5, 11, 16, 23], atol=1e-4)  # from 1700 on
    np.testing.assert_allclose(values[-1, -3:], [15.2, 7.5, 2.9], atol=1e-4)  # to 2008


@pytest.mark.parametrize(("name", "classes"), [("moons", 2), ("pinwheel", 3)])
def test_points_are_the_same_at_every_call(name, classes):
    one, other = datasets.load(name), datasets.load(name)
    np.testing.assert_array_equal(one.images, other.images)
    assert one.form.kind == "points" and len(one.class_names) == classes
    # The nearest of the others is of the same class: arms and moons lie apart.
    squares = np.sum((one.images[:, None] - one.images) ** 2, -1) + 9 * np.eye(len(one.images))
    assert np.mean(one.labels[squares.argmin(1)] == one.labels) > 0.98


# ------------------------------------------------------------------ forms


def test_a_form_survives_a_checkpoint():
    form = datasets.load("wine").form
    assert form_of({"form": json.loads(json.dumps(form._asdict()))}) == form
    assert form_of({}) == IMAGES


@pytest.mark.parametrize(
    "form",
    [
        {"kind": "table"},
        {"kind": "images", "columns": ["a"], "mean": [0], "std": [1]},
        {"kind": "x", "columns": ["a"], "mean": [0], "std": [1]},
        {"kind": "table", "columns": ["a"], "mean": [0], "std": [0]},
        {"kind": "table", "columns": ["a"], "mean": [0, 1], "std": [1]},
        {"kind": "table", "columns": ["a"], "mean": [float("nan")], "std": [1]},
        {"kind": "table", "columns": [1], "mean": [0], "std": [1]},
        {"kind": "table", "columns": 3, "mean": [0], "std": [1]},
        [], "x",
    ],
)  # fmt: skip
def test_a_damaged_form_is_refused(form):
    with pytest.raises(ValueError, match="records columns that are damaged"):
        form_of({"form": form})


def test_images_are_given_back_as_they_are():
    x = np.arange(3.0)
    assert Form().restored(x) is x and Form().restored_change(x) is x
