"""Reads prompts from the files that people keep them in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from fewstep.orchestrator.errors import BadInput, nearest

Reader = Callable[[Path], pa.Table]


def read_prompts(
    path: str, field: str = "trajectories.prompts", column: str = "prompt", *, distinct: bool = True
) -> list[str]:
    """The distinct prompts of a file or of a Hugging Face `datasets` folder, in order; the empty prompt is one.

    A text file holds one a line; .csv, .parquet, .jsonl and folders hold a column of them. A prompt that is
    repeated counts once, unless all are asked for. An empty path is the empty prompt, for unconditional teachers.
    Raises BadInput for a path that is missing, empty or unreadable.
    """
    if not path:
        return [""]
    source = Path(path)
    if not source.exists():
        raise BadInput(f"{field}: there is no file {path}; give .txt, .csv, .parquet, .jsonl or a datasets folder")
    try:
        is_text = source.suffix not in READERS and source.is_file()
        prompts = _lines(source) if is_text else _column(source, field, column)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        kind = source.suffix if source.suffix in READERS else "text in UTF-8 with one prompt a line"
        raise BadInput(f"{field}: {path} cannot be read as {kind} ({error})") from None
    if not any(prompts):
        raise BadInput(f"{field}: {path} holds no prompt; write one a line")
    return list(dict.fromkeys(prompts)) if distinct else prompts


def prompts_digest(prompts: Sequence[str]) -> str:
    """SHA-256 over the prompts in order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")]


def _column(path: Path, field: str, column: str) -> list[str]:
    table = _folder(path, field) if path.is_dir() else READERS[path.suffix](path)
    if column not in table.column_names:
        known = ", ".join(table.column_names)
        raise BadInput(f"{field}: {path} has no column {column!r}{nearest(column, table.column_names)}, but {known}")
    values = table.column(column)
    if values.null_count or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise BadInput(f"{field}: the column {column!r} of {path} must hold text in every row")
    return [str(value).strip() for value in values.to_pylist()]


def _folder(path: Path, field: str) -> pa.Table:
    """What `save_to_disk` wrote, or a folder of Parquet files."""
    for suffix in (".arrow", ".parquet"):
        if files := sorted(path.glob(f"*{suffix}")):
            return pa.concat_tables([READERS[suffix](file) for file in files])
    splits = ", ".join(sorted(inner.name for inner in path.iterdir() if inner.is_dir())) or "nothing"
    raise BadInput(f"{field}: {path} is no datasets folder, it has no .arrow or .parquet file; inside is {splits}")


def _arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


READERS: Mapping[str, Reader] = {
    ".arrow": _arrow,
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
    ".parquet": pq.read_table,
}
