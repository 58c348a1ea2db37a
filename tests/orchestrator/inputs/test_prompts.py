from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.inputs.prompts import read_prompts

PROMPTS = ["a cat", "a dog, asleep", "a cat", ""]


def arrow(folder: Path) -> None:
    """As `datasets.Dataset.save_to_disk` does it: streams, numbered."""
    folder.mkdir()
    for number, rows in enumerate((PROMPTS[:1], PROMPTS[1:])):
        table = pa.table({"id": list(range(len(rows))), "prompt": rows})
        with pa.ipc.new_stream(str(folder / f"data-0000{number}-of-00002.arrow"), table.schema) as stream:
            stream.write_table(table)


WRITERS: dict[str, Callable[[Path], object]] = {
    "prompts.txt": lambda file: file.write_text("a cat\r\na dog, asleep \n\na cat\n"),
    "prompts.csv": lambda file: file.write_text('id,prompt\n1,a cat\n2,"a dog, asleep"\n3,a cat\n4,""\n'),
    "prompts.jsonl": lambda file: file.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in PROMPTS)),
    "prompts.parquet": lambda file: pq.write_table(pa.table({"prompt": PROMPTS}), file),
    "saved": arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_distinct_prompts_come_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert set(read_prompts(str(tmp_path / name))) == {"a cat", "a dog, asleep", ""}
    assert read_prompts(str(tmp_path / name))[:2] == ["a cat", "a dog, asleep"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "no prompt"),
        ("a.txt", b"\n \n", "no prompt"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.csv", b"promt,id\na,1\n", "no column 'prompt' .did you mean 'promt'"),
        ("a.csv", b"prompt,id\n1,1\n", "text in every row"),
        ("a.parquet", b"PAR2", "cannot be read as .parquet"),
        ("a.jsonl", b"{", "cannot be read as .jsonl"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"trajectories.prompts: .*{says}"):
        read_prompts(str(tmp_path / name))


def test_a_place_that_is_missing_or_a_set_of_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="trajectories.prompts: there is no file"):
        read_prompts(str(tmp_path / "none.txt"))
    (tmp_path / "train").mkdir()
    with pytest.raises(BadInput, match="no .arrow or .parquet file; inside is train"):
        read_prompts(str(tmp_path))
