"""What an evaluation leaves, and a report's worth of it, with numbers made up."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fewstep.orchestrator.evaluation.results import LOOKS, Claim, EvaluationResults, Row
from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.observability.image_grid import grid
from fewstep.orchestrator.reports.run_page import ReportFacts

KIDS = {("teacher", 50): 0.0004, ("teacher", 1): 0.9, ("teacher", 2): 0.42, ("teacher", 4): 0.11, ("teacher", 8): 0.021}
KIDS |= {("student", 1): 0.06, ("student", 2): 0.031, ("student", 4): 0.012, ("student", 8): 0.01}
REFERENCES: tuple[Literal["teacher", "images"], ...] = ("teacher", "images")


def results(kids: dict[tuple[str, int], float] = KIDS, samples: int = 2000) -> EvaluationResults:
    """As an evaluation leaves them, with numbers made up."""
    rows, claims = [], []
    for (system, steps), kid in kids.items():
        values = {"KID": kid, "precision": 0.8, "recall": 0.6, "variety": 1.0, "same-noise distance": 9.0}
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
                rest = (ends[1] < 0, samples, samples >= 2000, best / (kid + 0.002) if kind == "beats" else 0.0)
                claims.append(Claim(text, kind, steps, "teacher", value, *ends, *rest))  # pyright: ignore[reportArgumentType]
    return EvaluationResults(rows, claims)


def sampled(features: np.ndarray) -> SampleFeatures:
    """Features [n, d] of samples of which nothing else is known."""
    count, none = len(features), np.zeros((0, 32, 32, 3), np.uint8)
    return SampleFeatures(features, np.zeros((count, 0), np.float16), np.zeros((count, len(LOOKS)), np.float32), none)


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
        extremes=folder / "extremes.png",
        training={"1-lcm": losses},
        stages_s={"generate": 140.2, "train": 212.0, "export": 4.1, "evaluate": 96.3},
        snippet="from diffusers import DiffusionPipeline\nprint('<b>')",
        lineage={"teacher revision": "ab" * 32, "trajectories": "cd" * 32, "torch": "2.13.0"},
        places={"student": "outputs/emoji-lcm/student", "numbers": "outputs/emoji-lcm/evaluation/metrics.json"},
        recipe={"teacher": {"folder": "recipes/teachers/emoji"}, "method": {"name": "lcm"}},
    )
