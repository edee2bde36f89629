"""Images that stay in their files are those that were written."""

import json
import pickle
import struct
import warnings
import zlib
from pathlib import Path

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
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


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


def test_a_zarr_array_is_read_whole_too(tmp_path):
    found = datasets.load(str(in_zarr(tmp_path, BYTES)))
    np.testing.assert_allclose(found.images, AS_NUMBERS, atol=1e-6)
    assert found.name == "a" and found.class_names == ("all",)
    group = in_a_group(tmp_path, FLOATS)
    zarr.open_group(group).create_array("labels", data=np.array([7, 7, 7, 300, 7, 7, 2]))
    found = datasets.load(str(group))
    np.testing.assert_array_equal(found.images, FLOATS[..., None])
    assert found.class_names == ("2", "7", "300") and found.labels.tolist() == [1, 1, 1, 2, 1, 1, 0]


def with_a_bad_chunk(folder):
    path = in_zarr(folder, BYTES)
    (chunk,) = [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]
    chunk.write_bytes(chunk.read_bytes()[:-9])
    return path


def with_metadata(text):
    def make(folder):
        path = in_zarr(folder, BYTES)
        (path / "zarr.json").write_text(text)
        return path

    return make


def with_a_group_of_images(folder):
    path = folder / "g.zarr"
    zarr.open_group(path, mode="w").create_group("images").create_array("x", data=BYTES)
    return path


class Program:
    """What unpickles to a file that was not there."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def with_pickles(folder):
    path = folder / "a.zarr"
    path.mkdir()
    about = {"shape": [7, 4, 5, 3], "chunks": [7, 4, 5, 3], "dtype": "|O", "fill_value": ""}
    about |= {"zarr_format": 2, "order": "C", "compressor": None}
    about |= {"filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]}
    (path / ".zarray").write_text(json.dumps(about))
    (path / "0.0.0.0").write_bytes(pickle.dumps(Program(folder / "it ran")))
    return path


def huge(folder):
    path = folder / "a.zarr"
    zarr.create_array(path, shape=(10**9, 32, 32, 3), chunks=(10**9, 32, 32, 3), dtype="u1")
    return path


@pytest.mark.parametrize(
    "read", [lambda path: streams.stream(path)[:], lambda p: datasets.load(str(p))]
)
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (with_a_bad_chunk, r"a\.zarr is damaged, or no array of Zarr"),
        (with_metadata(""), r"a\.zarr is damaged, or no array of Zarr"),
        (with_metadata("[]"), r"a\.zarr is damaged, or no array of Zarr"),
        (with_metadata('{"zarr_format": 3}'), r"a\.zarr (is damaged|has no array named images)"),
        (with_a_group_of_images, r"g\.zarr has no array named images, but \['images'\]"),
        (with_pickles, r"a\.zarr keeps its chunks as pickles"),
        (huge, r"a\.zarr would unpack to more than 1 GiB"),
    ],
)
def test_a_zarr_store_that_is_damaged_or_hostile_is_named(tmp_path, make, says, read):
    path = make(tmp_path)
    with pytest.raises(ValueError, match=says):
        read(path)
    assert not (tmp_path / "it ran").exists()


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


# ------------------------------------------------------------------ what pictures mean

GREY = BYTES[0, ..., 0]
DEEP = (257 * GREY.astype(np.uint16)) ^ 0x1F  # where both bytes count


def read_one(folder, image, name="a.png", **options):
    """The numbers of a folder with one more picture, and what was said about them."""
    image.save(folder / name, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = datasets.load(str(folder)).images
        np.testing.assert_array_equal(found, streams.stream(folder)[:])
    return found, {
        str(warning.message).removeprefix(f"of the images in {folder}, ") for warning in said
    }


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_all_read(tmp_path, name):
    found, said = read_one(tmp_path, Image.fromarray(DEEP), name)
    np.testing.assert_allclose(found[0, ..., 0], DEEP / 65535 * 2 - 1, atol=1e-6)
    assert found.shape == (1, 4, 5, 1) and not said


def test_sixteen_bits_beside_eight_are_on_one_scale(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "b.png")
    found, said = read_one(tmp_path, Image.fromarray(257 * GREY.astype(np.uint16)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert not said


def twelve_bits():
    """A TIFF of two pixels of twelve bits."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<I", 12) + b"\x12\x34\x56\0"
    return start + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_range_are_refused(tmp_path, kind):
    Image.fromarray(DEEP.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif .* no range that is known .* in a \.npy file"):
        datasets.load(str(tmp_path))


def test_twelve_bits_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(twelve_bits())
    with pytest.raises(ValueError, match=r"a\.tif .* no range that is known"):
        datasets.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["LA", "RGBA", "P"])
def test_transparent_pixels_are_white_and_noted(tmp_path, kind):
    """Whatever colour they hide."""
    alpha = np.full((4, 5), 255, np.uint8)
    alpha[1], alpha[2] = 0, 51
    image = Image.fromarray(BYTES[0]).convert("RGB")
    if kind == "P":
        image = image.quantize(20)
        image.info["transparency"] = image.getpixel((0, 1))
        seen = np.array(image.convert("RGB"), float)
        seen[np.asarray(image) == image.info["transparency"]] = 255
    else:
        image = image.convert(kind[:-1])
        seen = np.array(image, float).reshape(4, 5, -1)
        share = alpha[..., None] / 255
        seen = share * seen + (1 - share) * 255
        image.putalpha(Image.fromarray(alpha))
    found, said = read_one(tmp_path, image)
    np.testing.assert_allclose((found[0] + 1) * 127.5, seen, atol=0.51)
    assert said == {"some have transparent pixels, which are laid on white"}


def test_a_picture_that_hides_nothing_is_not_noted(tmp_path):
    found, said = read_one(tmp_path, Image.fromarray(BYTES[0]).convert("RGBA"))
    np.testing.assert_allclose(found[0], AS_NUMBERS[0], atol=1e-6)
    assert not said


@pytest.mark.parametrize(
    ("tag", "turn"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))],
)
def test_pictures_are_turned_as_their_tag_says(tmp_path, tag, turn):
    tags = Image.Exif()
    tags[0x0112] = tag
    found, said = read_one(tmp_path, Image.fromarray(BYTES[0]), exif=tags)
    np.testing.assert_allclose(found[0], turn(AS_NUMBERS[0]), atol=1e-6)
    assert said == ({"some are turned as their EXIF tag says"} if tag > 1 else set())


def test_grey_pictures_among_coloured_ones_become_so(tmp_path):
    """In whatever order: the first does not decide."""
    Image.fromarray(BYTES[0]).save(tmp_path / "b.png")
    found, said = read_one(tmp_path, Image.fromarray(DEEP))
    np.testing.assert_allclose(found[0], np.repeat(DEEP[..., None], 3, 2) / 32767.5 - 1, atol=1e-6)
    np.testing.assert_allclose(found[1], AS_NUMBERS[0], atol=1e-6)
    assert said == {"1 of 2 are coloured: the grey ones become so too"}


def test_the_first_of_several_pictures_is_taken_and_noted(tmp_path):
    pages = [Image.fromarray(image) for image in BYTES]
    found, said = read_one(tmp_path, pages[0], "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(found, AS_NUMBERS[:1], atol=1e-6)
    assert said == {"some are the first of several in their files"}


def test_hidden_files_are_no_data(tmp_path):
    folder = in_files(tmp_path, BYTES)
    before = streams.mark(folder)
    for name in (".ipynb_checkpoints/0.png", "class 0/.hidden/0.png"):
        (folder / name).parent.mkdir()
        Image.fromarray(BYTES[0]).save(folder / name)
    (folder / "class 0" / "._0.png").write_bytes(b"what macOS leaves")
    data = datasets.load(str(folder))
    assert len(data.images) == 7 and data.class_names == ("class 0", "class 1")
    assert streams.mark(folder) == before


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


def a_bomb(folder):
    """Sixteen gigabytes, by its header."""
    files = in_files(folder, BYTES)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 2**17, 2**17, 8, 0, 0, 0, 0)), (b"IDAT", b"")
    (files / "class 1" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks)))
    return files


def chunk(named):
    kind, content = named
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def a_pointer(folder):
    files = in_files(folder, BYTES)
    (files / "class 1" / "0.png").write_bytes(POINTER)
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


def an_archive(folder):
    np.savez(folder / "a.npz", images=BYTES)
    return folder / "a.npz"


def a_text(folder):
    (folder / "a.txt").write_text("a text")
    return folder / "a.txt"


@pytest.mark.parametrize(
    "make, error, says",
    [
        (nothing, FileNotFoundError, "no file or folder"),
        (a_text, ValueError, r"a\.txt is no \.npy or \.npz file: it begins with b'a text'"),
        (an_archive, ValueError, r"a\.npz is an archive .* save its images with numpy\.save"),
        (lambda folder: folder, ValueError, "has no image files: .png"),
        (broken, ValueError, "class 1/0.png cannot be read as an image"),
        (a_bomb, ValueError, "class 1/0.png cannot be read as an image: .* exceeds limit"),
        (a_pointer, ValueError, "class 1/0.png is a Git LFS pointer.*git lfs pull"),
        (of_two_sizes, ValueError, "9.png is 5 x 3 pixels, where .* is 5 x 4: make all of one"),
        (in_another_group, ValueError, r"no array named images, but \['pictures'\]"),
        (lambda folder: in_npy(folder, BYTES[..., 0].astype(int)), ValueError, "floats or bytes"),
        (lambda folder: in_npy(folder, BYTES[:0]), ValueError, r"of shape \(0, 4, 5, 3\)"),
        (
            lambda folder: in_npy(folder, BYTES[:, :0]),
            ValueError,
            r"npy: .* of shape \(7, 0, 5, 3\)",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        streams.stream(make(tmp_path))[:]
