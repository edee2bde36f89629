"""Images that stay in their files are those that were written."""

import jax
import numpy as np
import pytest
import zarr
from PIL import Image

import scoresens as ss
from scoresens import datasets
from scoresens.datasets import streams
from scoresens.sensitivity.functionals import inner_product

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, size=(7, 4, 5, 3)).astype(np.uint8)
FLOATS = RNG.normal(size=(7, 4, 5)).astype(np.float32)
AS_NUMBERS = BYTES / 255 * 2 - 1


def in_npy(folder, images):
    np.save(folder / "images.npy", images)
    return folder / "images.npy"


def in_zarr(folder, images):
    zarr.create_array(folder / "a.zarr", data=images)
    return folder / "a.zarr"


def in_a_group(folder, images):
    zarr.open_group(folder / "g.zarr", mode="w").create_array("images", data=images)
    return folder / "g.zarr"


def in_files(folder, images):
    for i, image in enumerate(images):
        file = folder / "files" / f"class {i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder / "files"


def by_class(images):
    return np.concatenate([images[::2], images[1::2]])


@pytest.mark.parametrize("write", [in_npy, in_zarr, in_a_group])
def test_arrays_are_read_by_rows(tmp_path, write):
    for images, expected in ((BYTES, AS_NUMBERS), (FLOATS, FLOATS[..., None])):
        folder = tmp_path / str(images.dtype)
        folder.mkdir()
        found = streams.stream(write(folder, images))
        assert found.shape == expected.shape and len(found) == 7
        np.testing.assert_allclose(found[2:5], expected[2:5], atol=1e-6)
        np.testing.assert_allclose(found[5:99], expected[5:], atol=1e-6)
        assert found[0:1].dtype == np.float32


@pytest.mark.parametrize("images", [BYTES, BYTES[..., 0]], ids=["coloured", "grey"])
def test_files_are_read_class_by_class(tmp_path, images):
    folder = in_files(tmp_path, images)
    expected = by_class(images).reshape(7, 4, 5, -1) / 255 * 2 - 1
    np.testing.assert_allclose(streams.stream(folder)[:], expected, atol=1e-6)
    data = datasets.load(str(folder))
    np.testing.assert_allclose(data.images, expected, atol=1e-6)
    assert data.class_names == ("class 0", "class 1")
    assert data.labels.tolist() == [0] * 4 + [1] * 3


def test_files_beside_folders_are_of_one_class(tmp_path):
    folder = in_files(tmp_path, BYTES)
    Image.fromarray(BYTES[0]).save(folder / "beside.jpg")
    assert datasets.load(str(folder)).class_names == ("all",)


@pytest.mark.slow
@pytest.mark.parametrize("write", [in_npy, in_zarr, in_files])
def test_attribution_from_files_is_that_from_memory(tmp_path, write):
    written = by_class(AS_NUMBERS) if write is in_files else AS_NUMBERS
    whole = ss.Points(written.astype(np.float32), bandwidth=0.5)
    there = ss.Points.on_host(streams.stream(write(tmp_path, BYTES)), bandwidth=0.5)
    process = ss.VP()
    noise = process.sample_prior((2, *whole.shape), key=jax.random.key(0))
    ask = inner_product(np.ones(whole.shape))
    a, b = (
        np.asarray(ss.attribute(process, ss.exact_score(process, whole), data, ask, noise,
                                solve=ss.Solve(steps=3)).scores)
        for data in (whole, there)
    )  # fmt: skip
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_another_file_has_another_mark(tmp_path):
    file = in_npy(tmp_path, BYTES)
    before = streams.mark(file)
    assert streams.mark(file) == before
    in_npy(tmp_path, BYTES[:5])
    assert streams.mark(file) != before


def broken(folder):
    files = in_files(folder, BYTES)
    (files / "class 1" / "0.png").write_bytes(b"no image")
    return files


def of_two_sizes(folder):
    files = in_files(folder, BYTES)
    Image.fromarray(BYTES[0, :3]).save(files / "class 1" / "9.png")
    return files


def in_another_group(folder):
    zarr.open_group(folder / "g.zarr", mode="w").create_array("pictures", data=BYTES)
    return folder / "g.zarr"


def nothing(folder):
    return folder / "nothing"


def a_text(folder):
    (folder / "a.txt").write_text("a text")
    return folder / "a.txt"


@pytest.mark.parametrize(
    "make, error, says",
    [
        (nothing, FileNotFoundError, "no file or folder"),
        (a_text, ValueError, "no .npy file, Zarr array or folder of images"),
        (lambda folder: folder, ValueError, "has no image files: .png"),
        (broken, ValueError, "class 1/0.png cannot be read as an image"),
        (of_two_sizes, ValueError, "9.png is 5 x 3 pixels, where .* is 5 x 4: make all of one"),
        (in_another_group, ValueError, r"no array named images, but \['pictures'\]"),
        (lambda folder: in_npy(folder, BYTES[..., 0].astype(int)), ValueError, "floats or bytes"),
        (lambda folder: in_npy(folder, BYTES[:0]), ValueError, r"of shape \(0, 4, 5, 3\)"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        streams.stream(make(tmp_path))[:]
