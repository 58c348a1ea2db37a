from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewstep.orchestrator.observability.image_grid import contact_sheet
from fewstep.orchestrator.observability.line_chart import Series, line_chart
from fewstep.orchestrator.reports.run_page import page as page_of
from fewstep.orchestrator.reports.run_page import write_report
from tests.support.page import Checker
from tests.support.results import KIDS, facts, results


def test_the_report_is_one_whole_page_that_loads_nothing(tmp_path: Path) -> None:
    write_report(facts(tmp_path, results()), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.sources and all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert not re.search(r"url\((?!#)|@import|<script", page)
    assert "print(&#x27;&lt;b&gt;&#x27;)" in page
    assert all(name in page for name in ("KID (MobileNetV2)", "prefers-color-scheme: dark", "arXiv:2310.04378"))


def test_the_headline_claims_what_the_interval_shows() -> None:
    assert "at least 7.8 times nearer to the teacher's 50-step pictures" in results().headline(4)
    assert "12.5 times as fast as those 50" in results().headline(4)
    assert "is nearer to" in results({**KIDS, ("student", 4): 0.104}).headline(4)
    assert "not shown to be better" in results({**KIDS, ("student", 4): 0.1095}).headline(4)


def test_the_headline_calls_nothing_better_that_eyes_object_to() -> None:
    found = results()
    claims = [replace(claim, holds=False, withheld="recall 0.002, where ...") for claim in found.claims]
    says = replace(found, claims=claims).headline(1)
    assert says.startswith("At 1 step the student is not called better") and "recall 0.002" in says


def test_what_was_not_shown_is_folded_away(tmp_path: Path) -> None:
    found = results({**KIDS, ("student", 4): 0.1095})
    page = page_of(facts(tmp_path, found))
    shown, _, folded = page.partition("<details><summary>Not shown: ")
    assert ">holds<" in shown and ">not shown<" not in shown and ">not shown<" in folded


def test_the_table_says_of_how_many_samples_each_number_is(tmp_path: Path) -> None:
    found = results()
    assert "2,000 samples of each system." in page_of(facts(tmp_path, found))
    rows = [replace(row, samples=500 if row.steps in (2, 8) else 2000) for row in found.rows]
    assert "2,000 samples of each system, 500 at 2, 8 steps." in page_of(facts(tmp_path, replace(found, rows=rows)))


def test_the_headline_of_few_samples_is_no_claim() -> None:
    assert "no claim" in results(samples=500).headline(4)
    assert "no claim" not in results(samples=2000).headline(4)


def test_the_headline_is_about_the_steps_that_were_judged() -> None:
    assert results().headline(3).startswith(("At 2 steps", "At 4 steps"))


def test_a_value_of_zero_has_a_place_on_a_logarithmic_axis() -> None:
    svg = line_chart(
        [Series("x", "student", [(1, 0.5), (2, 0.0)], [(0.4, 0.6), (-0.1, 0.1)])], "steps", "KID", log_x=True
    )
    heights = [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)" style="fill: var\(--student\)', svg)]
    drawn, in_legend = heights[:2], heights[2:]
    assert len(in_legend) == 1 and drawn[0] < drawn[1] < 252


def test_pictures_are_enlarged_by_whole_factors(tmp_path: Path) -> None:
    from PIL import Image

    pictures = np.zeros((5, 32, 32, 3), np.uint8)
    contact_sheet(pictures, 2, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 102 + 6, 3 * 102 + 6)
