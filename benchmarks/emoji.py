"""Emoji by category as a data set: `python benchmarks/emoji.py PACKAGE OUT`.

PACKAGE is the unpacked folder of npm's `emoji-datasource-google` (16.0.0; `npm pack` fetches it).
OUT becomes a folder of PNGs, a sub-folder a category: flags, faces, animals and food, on white,
32 x 32 pixels in colour.
"""

import json
import sys
from pathlib import Path

from PIL import Image

CATEGORIES = {
    "Flags": "flags",
    "Smileys & Emotion": "faces",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
}
SIZE = 32


def picture(path: Path) -> Image.Image:
    """One emoji on white."""
    drawn = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    whole = Image.alpha_composite(white, drawn).convert("RGB")
    return whole.resize((SIZE, SIZE), Image.Resampling.BOX)


def main(package: Path, out: Path) -> None:
    listed = json.loads((package / "emoji.json").read_text("utf-8"))
    for each in listed:
        path = package / "img/google/64" / each["image"]
        if each["category"] in CATEGORIES and path.exists():
            folder = out / CATEGORIES[each["category"]]
            folder.mkdir(parents=True, exist_ok=True)
            picture(path).save(folder / each["image"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
