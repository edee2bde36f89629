"""One picture of a file, as the file means it: its depth, its colours, its tags.

grey              [H, W, 1]; of 16 bits, all of them
coloured          [H, W, 3], of 8 bits
transparent       laid on white, as a page shows it; what is hidden behind is not seen
an EXIF turn      made, as viewers show it
several pictures  the first
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from scoresens._extras import needed
from scoresens._reading import refuse_pointer

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")  # of many; some run other programs
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
GREY = ("1", "L", "LA", "La")
COLOURED = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
ORIENTATION = 0x0112  # the EXIF tag
BITS, ZERO_IS = 258, 262  # tags of TIFF
WHITE_16 = 65_535

Pixels = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]


class Picture(NamedTuple):
    """A picture, and what was done to it that its reader should know."""

    pixels: Pixels
    remarks: tuple[str, ...]


def is_coloured(file: Path) -> bool:
    """Whether a picture has colours; only the file's header is read.

    Raises:
        ValueError: if the file is no picture, or one of numbers without a known range.
        ImportError: without the extra `sweeps`.
    """
    with _opened(file) as image:
        return not _is_deep(image) and image.mode not in GREY


def read(file: Path) -> Picture:
    """The picture of a file. Raises as `is_coloured`."""
    operations = needed("PIL.ImageOps", "reading image files", "sweeps")
    with _opened(file) as image:
        remarks = []
        if getattr(image, "is_animated", False):
            remarks.append("are the first of several in their files")
        image.load()
        if image.getexif().get(ORIENTATION, 1) in range(2, 9):
            remarks.append("are turned as their EXIF tag says")
        turned = operations.exif_transpose(image)
        pixels, hidden = (_deep if _is_deep(image) else _plain)(turned)
        if hidden:
            remarks.append("have transparent pixels, which are laid on white")
        return Picture(pixels.reshape(*pixels.shape[:2], -1), tuple(remarks))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Yields a picture of a mode that is known; what goes wrong in here names the file."""
    images = needed("PIL.Image", "reading image files", "sweeps")
    try:
        with images.open(file, formats=FORMATS) as image:
            _check_mode(image)
            yield image
    except Exception as error:  # a decoder may fail in any way
        refuse_pointer(file)
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _check_mode(image: Any) -> None:
    if image.mode not in (*GREY, *COLOURED) and not _is_deep(image):
        raise ValueError(
            f"its numbers (mode {image.mode}) have no range that is known to run from black to "
            "white; save it with 8 or 16 bits, or all images as floats in a .npy file"
        )


def _is_deep(image: Any) -> bool:
    """Whether a picture is grey of 16 bits, which older Pillows call I in PNG; a TIFF may keep
    fewer bits in them, or call white 0."""
    tags = getattr(image, "tag_v2", {})
    whole = tags.get(BITS, (16,)) == (16,) and tags.get(ZERO_IS, 1) == 1
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    return deep and whole


def _deep(image: Any) -> tuple[np.ndarray, bool]:
    """16 bits, and whether some were transparent."""
    pixels = np.array(image).astype(np.uint16)
    hidden = pixels == image.info.get("transparency", -1)
    pixels[hidden] = WHITE_16
    return pixels, bool(hidden.any())


def _plain(image: Any) -> tuple[np.ndarray, bool]:
    """8 bits, and whether some were transparent."""
    kind, hidden = "L" if image.mode in GREY else "RGB", False
    if image.has_transparency_data:
        images = needed("PIL.Image", "reading image files", "sweeps")
        image = image.convert("RGBA")
        hidden = image.getextrema()[3][0] < 255
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert(kind)), hidden
