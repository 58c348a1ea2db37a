"""Make the sheet and the captions from the npm package emoji-datasource-google (16.0.0), unpacked.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python recipes/teachers/emoji/build_data.py package
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data import COLUMNS, FOLDER, SIZE
from PIL import Image

CATEGORIES = {
    "Animals & Nature": "animal or plant",
    "Food & Drink": "food or drink",
    "Objects": "object",
    "Travel & Places": "place or vehicle",
    "Smileys & Emotion": "emotion",
    "Activities": "activity",
}
KINDS = {"animal": "{}", "food": "{} food", "plant": "{} plant", "place": "{} place", "transport": "{} transport"}


def plain(subcategory: str) -> str:
    """food-fruit -> fruit food, face-smiling -> smiling face, sky & weather -> sky and weather."""
    words = subcategory.replace(" & ", " and ")
    kind, _, rest = words.partition("-")
    if kind == "face":
        return f"{rest} face"
    return KINDS[kind].format(rest) if rest and kind in KINDS else words.replace("-", " ")


def main(package: Path) -> None:
    """Write emoji.webp and captions.json."""
    rows = [e for e in json.loads((package / "emoji.json").read_text()) if e["category"] in CATEGORIES]
    sheet = Image.new("RGBA", (COLUMNS * SIZE, -(-len(rows) // COLUMNS) * SIZE))
    for i, row in enumerate(rows):
        tile = Image.open(package / "img/google/64" / row["image"]).convert("RGBA")
        tile = tile.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")
        sheet.paste(tile, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    FOLDER.mkdir(exist_ok=True)
    sheet.save(FOLDER / "emoji.webp", lossless=True, quality=100, method=6)
    captions = [[e["name"].lower(), plain(e["subcategory"]), CATEGORIES[e["category"]]] for e in rows]
    (FOLDER / "captions.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in captions) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
