from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np

from fewstep.orchestrator.evaluation.results import Claim, EvaluationResults, Row
from fewstep.orchestrator.observability.image_grid import contact_sheet, grid
from fewstep.orchestrator.observability.line_chart import Series, line_chart
from fewstep.orchestrator.reports.run_page import ReportFacts, write_report

KIDS = {("teacher", 50): 0.0004, ("teacher", 1): 0.9, ("teacher", 2): 0.42, ("teacher", 4): 0.11, ("teacher", 8): 0.021}
KIDS |= {("student", 1): 0.06, ("student", 2): 0.031, ("student", 4): 0.012, ("student", 8): 0.01}
REFERENCES: tuple[Literal["teacher", "images"], ...] = ("teacher", "images")


def results(kids: dict[tuple[str, int], float] = KIDS, samples: int = 2000) -> EvaluationResults:
    """As an evaluation leaves them, with numbers made up."""
    rows, claims = [], []
    for (system, steps), kid in kids.items():
        values = {"KID": kid, "precision": 0.8, "recall": 0.6, "same-noise distance": 9.0}
        sampler = "dpm++" if system == "teacher" else "LCMScheduler"
        for reference in REFERENCES:
            for metric, base in values.items():
                value = base + (0.02 if reference == "images" else 0)
                rows.append(
                    Row(
                        system=system,
                        sampler=sampler,
                        steps=steps,
                        guidance_scale=3.0,
                        metric=f"{metric} (MobileNetV2)",
                        features="mobilenetv2",
                        reference=reference,
                        value=value,
                        low=value - 0.05 * base,
                        high=value + 0.05 * base,
                        samples=samples,
                        seconds_per_image=0.004 * steps,
                    )
                )
    for (system, steps), kid in kids.items():
        if system == "student":
            best = kids["teacher", steps]
            differences = {"beats": kid - best, "half": kid - best / 2, "level": kid - kids["teacher", 50]}
            for kind, value in differences.items():
                text = f"The student at {steps} steps: {kind}"
                ends = (value - 0.002, value + 0.002)
                rest = (ends[1] < 0, samples, samples >= 2000)
                claims.append(Claim(text, kind, steps, "teacher", value, *ends, *rest))  # pyright: ignore[reportArgumentType]
    return EvaluationResults(rows, claims)


def facts(folder: Path, found: EvaluationResults) -> ReportFacts:
    """A whole report's worth."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    labels = [
        "teacher, 50 steps",
        *(f"{who}, {steps} steps" for steps in (1, 2, 4, 8) for who in ("teacher", "student")),
    ]
    grid([(label, pictures) for label in labels], ["red apple on a white ground"] * 12, folder / "grid.png")
    losses = [{"step": 20 * i, "loss/student/consistency": 0.3 / (1 + i / 9), "time/step_s": 0.1} for i in range(1, 90)]
    return ReportFacts(
        run="emoji-lcm",
        teacher="emoji",
        method="lcm",
        paper="2310.04378",
        student_steps=4,
        results=found,
        grid=folder / "grid.png",
        training={"1-lcm": losses},
        stages_s={"generate": 140.2, "train": 212.0, "export": 4.1, "evaluate": 96.3},
        snippet="from diffusers import DiffusionPipeline\nprint('<b>')",
        lineage={"teacher revision": "ab" * 32, "trajectories": "cd" * 32, "torch": "2.13.0"},
        places={"student": "outputs/emoji-lcm/student", "numbers": "outputs/emoji-lcm/evaluation/metrics.json"},
        recipe={"teacher": {"folder": "recipes/teachers/emoji"}, "method": {"name": "lcm"}},
    )


class Checker(HTMLParser):
    """Balanced tags, and nothing from elsewhere."""

    VOID = {"meta", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href") and tag != "a"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


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
    assert "less than half as far" in results().headline(4)
    assert "is nearer to" in results({**KIDS, ("student", 4): 0.09}).headline(4)
    assert "not shown to be better" in results({**KIDS, ("student", 4): 0.1095}).headline(4)


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
