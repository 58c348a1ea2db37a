"""Writes several runs into one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.evaluation.results import DIVERSITY, LOOKS, Claim, EvaluationResults, Row, caution, label
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.observability.image_grid import Pixels, grid
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.recipe.teacher import teacher_name
from fewstep.orchestrator.reports.facts import manifests_of, stages_of
from fewstep.orchestrator.runs.run import Run

PICTURED_STEPS = (1, 4)  # of the teacher


@dataclass(frozen=True)
class Number:
    """A measured number with the ends of its 95 % interval; of several runs, the mean and the outermost ends."""

    value: float
    low: float
    high: float

    @classmethod
    def over(cls, measured: Sequence[Row | Claim]) -> Number:
        """The same number of several runs."""
        mean = sum(one.value for one in measured) / len(measured)
        return cls(mean, min(one.low for one in measured), max(one.high for one in measured))


@dataclass(frozen=True)
class Finished:
    """One run and what was found of its student."""

    run: Run
    results: EvaluationResults

    @property
    def train_s(self) -> float:
        """What training took, of all rounds."""
        return stages_of(self.run)["train"]

    @property
    def teacher_evaluations(self) -> int:
        """How often the teacher was evaluated for its data sets, made for it or found."""
        urls = {manifest.path for manifest in manifests_of(self.run).values()}
        return sum(open_commit_log(url).plan.teacher_evaluations for url in urls)

    @property
    def peak_memory(self) -> float:
        """Bytes that a training worker held, in the round that took most; 0 where nothing was recorded."""
        rows = [row for file in self.run.folder.glob("rounds/*/metrics.jsonl") for row in metrics.read(file)]
        return max((row.get("train/peak_memory", 0.0) for row in rows), default=0.0)


@dataclass(frozen=True)
class Entry:
    """A recipe's finished runs, one for each seed."""

    name: str
    runs: Sequence[Finished]

    @property
    def recipe(self) -> Recipe:
        """That of its first run."""
        return self.runs[0].run.recipe

    @property
    def results(self) -> EvaluationResults:
        """Those of its first run."""
        return self.runs[0].results

    @property
    def steps(self) -> int:
        """What the student was made for, or the nearest that was judged."""
        return self.results.judged_steps(self.recipe.method.build().student_steps)

    @property
    def kids(self) -> list[Number]:
        """The student's, by steps."""
        return [
            Number.over([run.results.find("student", steps, "KID") for run in self.runs])
            for steps in self.results.steps
        ]

    @property
    def differences(self) -> list[Claim]:
        """KID at its steps less that of the teacher's best there, of each run."""
        return [run.results.claim("beats", self.steps) for run in self.runs]

    @property
    def verdict(self) -> str:
        """What the intervals say; of several seeds, what those of all say; and what eyes would object."""
        withheld = [claim.withheld for claim in self.differences if claim.withheld and claim.high < 0]
        if withheld:
            return f"not called better: {withheld[0]}"
        better = sum(claim.holds for claim in self.differences)
        worse = sum(claim.low > 0 for claim in self.differences)
        if len(self.runs) in (better, worse):
            verdict = "better" if better else "worse"
        else:
            verdict = f"better {better}, worse {worse} of {len(self.runs)}" if better + worse else "not told apart"
        claims = [claim for run in self.runs for claim in run.results.claims]
        level = [claim.holds for claim in claims if (claim.kind, claim.steps) == ("level", self.steps)]
        return verdict + (f", level with {self.results.many_steps} steps" if level and all(level) else "")

    @property
    def train_s(self) -> float:
        """What training took, a run's mean."""
        return sum(run.train_s for run in self.runs) / len(self.runs)

    @property
    def cpu_hours(self) -> float:
        """What that is of the training workers' CPUs."""
        resources = self.recipe.resources
        return self.train_s * resources.workers * resources.cpus_per_worker / 3600

    @property
    def peak_memory(self) -> float:
        """Bytes that a training worker held, in the run that took most."""
        return max(run.peak_memory for run in self.runs)

    @property
    def teacher_evaluations(self) -> int:
        """How often the teacher was evaluated for its first run's data sets, which the others share or repeat."""
        return self.runs[0].teacher_evaluations

    @property
    def pictures(self) -> Mapping[str, Pixels]:
        """What its first evaluation shows, by label, and the captions."""
        with np.load(self.runs[0].run.folder / "evaluation" / "pictures.npz") as arrays:
            return dict(arrays)

    def facts(self) -> Json:
        """All of that as plain data."""
        return {
            "recipe": self.name,
            "method": self.recipe.method.name,
            "seeds": [run.run.recipe.training.seed for run in self.runs],
            "steps": self.steps,
            "kid": [asdict(number) for number in self.kids],
            "differences": [asdict(claim) for claim in self.differences],
            "verdict": self.verdict,
            "train_s": [run.train_s for run in self.runs],
            "cpu_hours": self.cpu_hours,
            "peak_memory": self.peak_memory,
            "teacher_evaluations": self.teacher_evaluations,
        }


def write_comparison(entries: Sequence[Entry], failed: Mapping[str, str], folder: Path) -> Json:
    """Write compare.json, compare.md and, where a run has finished, compare.png; the facts of the first."""
    facts: dict[str, object] = {"methods": [entry.facts() for entry in entries], "failed": dict(failed)}
    if entries:
        null, *best = _teacher(entries[0].results)
        facts["teacher"] = {"null": asdict(null), "best": [asdict(row) for row in best]}
        _picture(entries, folder / "compare.png")
    write_whole(folder / "compare.json", json.dumps(facts, indent=1) + "\n")
    write_whole(folder / "compare.md", _page(entries, failed))
    return facts


def _teacher(results: EvaluationResults) -> list[Row]:
    """The null, then the best at each number of steps."""
    return [results.find("teacher", steps, "KID") for steps in (results.many_steps, *results.steps)]


def _picture(entries: Sequence[Entry], file: Path) -> None:
    results, pictures = entries[0].results, entries[0].pictures
    steps = (results.many_steps, *(steps for steps in results.steps if steps in PICTURED_STEPS))
    rows = [(label("teacher", count), pictures[label("teacher", count)]) for count in steps]
    rows += [(label(entry.name, entry.steps), entry.pictures[label("student", entry.steps)]) for entry in entries]
    grid(rows, [str(caption) for caption in pictures["captions"]], file)


def _page(entries: Sequence[Entry], failed: Mapping[str, str]) -> str:
    """The table, and what one has to know to read it."""
    errors = [f"- {name} did not finish: {error.splitlines()[-1]}" for name, error in failed.items()]
    if not entries:
        return "\n".join(errors) + "\n"
    results, recipe = entries[0].results, entries[0].recipe
    null, *best = _teacher(results)
    heads = ["recipe", "method", *(f"KID at {steps}" for steps in results.steps), "its steps"]
    heads += ["there, less the teacher's best", "verdict", "precision, recall, variety", ", ".join(LOOKS)]
    heads += ["training", "CPU hours", "memory", "teacher evaluations"]
    its = [_seen([results], "teacher", results.many_steps, names) for names in (DIVERSITY, LOOKS)]
    lines = [heads, ["---"] * len(heads), ["the teacher's best", "", *map(_cell, best), "", "", "", *its, *[""] * 4]]
    for entry in entries:
        link = f"[{entry.name}](runs/{entry.name}/report.html)"
        lines.append([link, entry.recipe.method.name, *map(_cell, entry.kids), str(entry.steps)])
        evaluations = [run.results for run in entry.runs]
        seen = [_seen(evaluations, "student", entry.steps, names) for names in (DIVERSITY, LOOKS)]
        lines[-1] += [_cell(Number.over(entry.differences), "+"), entry.verdict, *seen, *_costs(entry)]
    note = "" if entries[0].differences[0].is_claim else f" {caution(null.samples)}"
    seeds = max(len(entry.runs) for entry in entries)
    several = f" Of {seeds} seeds of training: the mean, and the outermost ends of the intervals." if seeds > 1 else ""
    parts = [
        f"# Methods on {teacher_name(recipe.teacher)}",
        f"{results.kid} to the teacher's {results.many_steps}-step pictures at few steps, lower is nearer, with 95 % "
        f"intervals. The teacher itself at {results.many_steps} steps, on other noise: {_cell(null)}.{note}{several}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *(["\n".join(errors)] if errors else []),
        f"Precision, recall, variety and looks are by the teacher at {results.many_steps} steps, whose own stand in "
        "the first row.",
        "Recipes with equal plans share one data set; its teacher evaluations stand with each of them. Memory is the "
        "most that a training worker held.",
        "![The same noise and prompts down each column](compare.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _seen(evaluations: Sequence[EvaluationResults], system: str, steps: int, metrics: Sequence[str]) -> str:
    """The means of several evaluations, of the metrics that they have."""
    numbers = [
        [one.find(system, steps, name) for one in evaluations] for name in metrics if evaluations[0].measured(name)
    ]
    return ", ".join(f"{Number.over(rows).value:.3f}" for rows in numbers)


def _costs(entry: Entry) -> list[str]:
    memory = f"{entry.peak_memory / 2**30:.1f} GiB"
    return [f"{entry.train_s:,.0f} s", f"{entry.cpu_hours:.2f}", memory, f"{entry.teacher_evaluations:,}"]


def _cell(number: Number | Row | Claim, sign: str = "") -> str:
    return f"{number.value:{sign}.4f} [{number.low:{sign}.4f}, {number.high:{sign}.4f}]"
