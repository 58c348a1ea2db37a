"""Pages name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.source import ROOT

PAGES = sorted(page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize("room", ["orchestrator", "methods"])
def test_a_room_s_page_names_files_that_are_there(room: str) -> None:
    names = re.findall(r"`((?:\w+/)*\w+\.py)`", (ROOT / room / "README.md").read_text())
    assert names and [name for name in names if not ((ROOT / room / name).exists() or (ROOT / name).exists())] == []


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
