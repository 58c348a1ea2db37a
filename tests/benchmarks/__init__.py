"""What is measured, on the embedded teachers."""

from pathlib import Path

TEACHERS = {name: Path(__file__).parents[2] / "recipes" / "teachers" / name for name in ("emoji", "fashion")}
