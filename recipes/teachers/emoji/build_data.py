"""Make what lies beside the teacher.

The sheet and the captions, from the npm package emoji-datasource-google (16.0.0), unpacked:

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python recipes/teachers/emoji/build_data.py package

The prompts and the real pictures of the held-out ones, from the sheet alone:

    python recipes/teachers/emoji/build_data.py
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from data import COLUMNS, FOLDER, LEVELS, SIZE, choice, describe, draw, draw_placement, held_out_prompts, load
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


def sheet(package: Path) -> None:
    """Write emoji.webp and captions.json."""
    rows = [e for e in json.loads((package / "emoji.json").read_text()) if e["category"] in CATEGORIES]
    whole = Image.new("RGBA", (COLUMNS * SIZE, -(-len(rows) // COLUMNS) * SIZE))
    for i, row in enumerate(rows):
        tile = Image.open(package / "img/google/64" / row["image"]).convert("RGBA")
        tile = tile.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")
        whole.paste(tile, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    FOLDER.mkdir(exist_ok=True)
    whole.save(FOLDER / "emoji.webp", lossless=True, quality=100, method=6)
    captions = [[e["name"].lower(), plain(e["subcategory"]), CATEGORIES[e["category"]]] for e in rows]
    (FOLDER / "captions.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in captions) + "\n]\n")


def prompts(count: int = 4000) -> None:
    """Write prompts.txt, distinct captions as training draws them, and heldout.txt."""
    _, emoji = load()
    generator = torch.Generator().manual_seed(0)
    captions: dict[str, None] = {}
    while len(captions) < count:
        index = int(torch.randint(len(emoji), (), generator=generator))
        captions[describe(emoji[index], draw_placement(emoji, index, generator), generator)] = None
    (FOLDER / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in captions))
    (FOLDER / "heldout.txt").write_text("".join(f"{prompt}\n" for prompt in held_out_prompts(emoji)))


def pictures(count: int = 2000) -> None:
    """Write heldout.parquet: what the held-out prompts look like in the data, in Hugging Face's image format."""
    sprites, emoji = load()
    generator = torch.Generator().manual_seed(1)
    held_out = (FOLDER / "heldout.txt").read_text().splitlines()
    rows = []
    for i in range(count):
        thing, _, colour = held_out[i % len(held_out)].rpartition(" on ")
        fitting = [n for n, e in enumerate(emoji) if thing in (getattr(e, level) for level in LEVELS if level)]
        index = int(choice([str(n) for n in fitting], generator))
        image = (draw(sprites, [draw_placement(emoji, index, generator, colour)])[0] + 1).mul(127.5).round().byte()
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "webp", lossless=True, quality=100, method=6)
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{i}.webp"}, "prompt": f"{thing} on {colour}"})
    pq.write_table(pa.Table.from_pylist(rows), FOLDER / "heldout.parquet")


if __name__ == "__main__":
    if sys.argv[1:]:
        sheet(Path(sys.argv[1]))
    prompts()
    pictures()
