"""Write heldout.parquet: the first pictures of the test set, in Hugging Face's image format.

python recipes/teachers/fashion/build_data.py [FOLDER]   # of the four .gz files; Debian's without
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from data import DEBIAN, load
from PIL import Image

COUNT = 2500


def main(data: Path) -> None:
    """Write the file."""
    pictures, labels = load(data, "t10k")
    pixels = (pictures[:COUNT, 0] + 1).mul(127.5).round().byte().numpy()
    rows = []
    for i, label in enumerate(labels[:COUNT].tolist()):
        file = io.BytesIO()
        Image.fromarray(pixels[i]).save(file, "png", optimize=True)
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{i}.png"}, "label": label})
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).parent / "data" / "heldout.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else DEBIAN)
