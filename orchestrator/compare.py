"""Several recipes on one teacher: a run for each, then all of them in one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from rich.markup import escape

from orchestrator import verbs
from orchestrator.baselines import measure_teacher
from orchestrator.card import teacher_name
from orchestrator.checkpoint import write_whole
from orchestrator.console import say
from orchestrator.errors import BadInput
from orchestrator.evaluate import Claim, Row, label
from orchestrator.findings import Findings, caution
from orchestrator.ledger import open_ledger
from orchestrator.pictures import Pixels, grid
from orchestrator.recipe import Json, Recipe, load
from orchestrator.run import Run
from orchestrator.run import compare as differences
from orchestrator.train import check as check_recipe

PICTURED_STEPS = (1, 4)  # of the teacher


@dataclass(frozen=True)
class Entry:
    """A finished run."""

    name: str
    run: Run
    findings: Findings

    @property
    def steps(self) -> int:
        """What the student was made for, or the nearest that was judged."""
        return self.findings.judged_steps(self.run.recipe.method.build().student_steps)

    @property
    def kids(self) -> list[Row]:
        """The student's, by steps."""
        return [self.findings.find("student", steps, "KID") for steps in self.findings.steps]

    @property
    def difference(self) -> Claim:
        """KID at its steps less that of the teacher's best there."""
        return self.findings.claim("beats", self.steps)

    @property
    def verdict(self) -> str:
        """What the intervals say."""
        found = "better" if self.difference.holds else "worse" if self.difference.low > 0 else "not told apart"
        at_its_steps = (claim for claim in self.findings.claims if (claim.kind, claim.steps) == ("level", self.steps))
        level = f", level with {self.findings.many_steps} steps"
        return found + "".join(level for claim in at_its_steps if claim.holds)

    @property
    def train_s(self) -> float:
        """What training took, of all rounds."""
        return cast(Mapping[str, float], self.run.facts["stages"])["train"]

    @property
    def teacher_evaluations(self) -> int:
        """Of its data sets, made for it or found."""
        manifests = cast(Mapping[str, Mapping[str, str]], self.run.facts["manifests"])
        places = {manifest["path"] for manifest in manifests.values()}
        return sum(open_ledger(place).plan.teacher_evaluations for place in places)

    @property
    def pictures(self) -> Mapping[str, Pixels]:
        """What its evaluation shows, by label, and the captions."""
        with np.load(self.run.folder / "evaluation" / "pictures.npz") as arrays:
            return dict(arrays)

    def facts(self) -> Json:
        """All of that as plain data."""
        return {
            "recipe": self.name,
            "method": self.run.recipe.method.name,
            "steps": self.steps,
            "kid": [asdict(row) for row in self.kids],
            "difference": asdict(self.difference),
            "verdict": self.verdict,
            "train_s": self.train_s,
            "teacher_evaluations": self.teacher_evaluations,
        }


def compare(recipes: Mapping[str, Recipe], folder: Path) -> Json:
    """Run what is not finished, one after the other, and write compare.json, compare.md and compare.png after each.

    What fails is told with its error, and the same call tries it again. Raises BadInput where the recipes'
    numbers could not be compared, and where a run was begun with another recipe.
    """
    check(recipes)
    placed = {name: _placed(recipe, name, folder.resolve()) for name, recipe in recipes.items()}
    for recipe in placed.values():
        if Path(recipe.output).exists():
            Run(recipe)  # refused now, where it was begun with another recipe
    if any(not _is_done(recipe) for recipe in placed.values()):
        say("\n[bold]teacher[/bold], once for all")
        measure_teacher(next(iter(recipes.values())), folder / "teacher" / "work", folder / "teacher")
    entries: list[Entry] = []
    failed: dict[str, str] = {}
    facts: Json = {}
    for number, (name, recipe) in enumerate(placed.items(), 1):
        say(f"\n[bold]{name}[/bold], {number} of {len(placed)}")
        try:
            if not _is_done(recipe):
                verbs.run(recipe)
            run = Run(recipe)
            entries.append(Entry(name, run, Findings.read(run.folder / "evaluation")))
        except Exception as error:  # whatever went wrong here, the others can be compared
            failed[name] = str(error).strip() or type(error).__name__
            say(f"{name} did not finish: {escape(failed[name])}")
        facts = _write(entries, failed, folder)
    say(f"\n{folder / 'compare.md'} shows them side by side")
    return facts


def read(words: Sequence[str]) -> dict[str, Recipe]:
    """The recipes among words by name; words like `training.steps=100` change a field in all of them."""
    overrides = [word for word in words if "=" in word]
    recipes: dict[str, Recipe] = {}
    for word in words:
        if word in overrides:
            continue
        name = Path(word).stem
        if name in recipes:
            raise BadInput(f"two recipes are called {name!r}; rename one, each has a run of its name")
        recipes[name] = load(word, overrides)
    if not recipes:
        raise BadInput("there is no recipe to compare; name some, like recipes/compare/emoji/*.yaml")
    return recipes


def check(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes whose numbers could not be compared, and those that `run` would refuse."""
    first, *others = recipes
    for name in others:
        for field, there, here in differences(_shared(recipes[first]), _shared(recipes[name])):
            raise BadInput(f"{field} is {there} in {first} and {here} in {name}; what is compared must share it")
    for recipe in recipes.values():
        check_recipe(recipe)


def _shared(recipe: Recipe) -> Json:
    """All that measuring depends on but the student."""
    resolved = recipe.resolved()
    negative = {"negative_prompt": recipe.trajectories.negative_prompt}
    return {"teacher": resolved["teacher"], "evaluation": resolved["evaluation"], "trajectories": negative}


def _placed(recipe: Recipe, name: str, folder: Path) -> Recipe:
    """With a run of its own; where two plans are equal, what they sample is one, and so is the teacher's measure."""
    trajectories = recipe.trajectories.model_copy(update={"store": str(folder / "trajectories")})
    evaluation = recipe.evaluation.model_copy(update={"baselines": str(folder / "teacher")})
    told = {"output": str(folder / "runs" / name), "trajectories": trajectories, "evaluation": evaluation}
    return recipe.model_copy(update=told)


def _is_done(recipe: Recipe) -> bool:
    return (Path(recipe.output) / "report.html").exists()  # the last that a run writes


def _write(entries: Sequence[Entry], failed: Mapping[str, str], folder: Path) -> Json:
    facts: dict[str, object] = {"methods": [entry.facts() for entry in entries], "failed": dict(failed)}
    if entries:
        null, *best = _teacher(entries[0].findings)
        facts["teacher"] = {"null": asdict(null), "best": [asdict(row) for row in best]}
        _picture(entries, folder / "compare.png")
    write_whole(folder / "compare.json", json.dumps(facts, indent=1) + "\n")
    write_whole(folder / "compare.md", _page(entries, failed))
    return facts


def _teacher(found: Findings) -> list[Row]:
    """The null, then the best at each number of steps."""
    return [found.find("teacher", steps, "KID") for steps in (found.many_steps, *found.steps)]


def _picture(entries: Sequence[Entry], file: Path) -> None:
    found, shown = entries[0].findings, entries[0].pictures
    steps = (found.many_steps, *(steps for steps in found.steps if steps in PICTURED_STEPS))
    rows = [(label("teacher", count), shown[label("teacher", count)]) for count in steps]
    rows += [(label(entry.name, entry.steps), entry.pictures[label("student", entry.steps)]) for entry in entries]
    grid(rows, [str(caption) for caption in shown["captions"]], file)


def _page(entries: Sequence[Entry], failed: Mapping[str, str]) -> str:
    """The table, and what one has to know to read it."""
    errors = [f"- {name} did not finish: {error.splitlines()[-1]}" for name, error in failed.items()]
    if not entries:
        return "\n".join(errors) + "\n"
    found, recipe = entries[0].findings, entries[0].run.recipe
    null, *best = _teacher(found)
    heads = ["recipe", "method", *(f"KID at {steps}" for steps in found.steps), "its steps"]
    heads += ["there, less the teacher's best", "verdict", "training", "teacher evaluations"]
    lines = [heads, ["---"] * len(heads), ["the teacher's best", "", *map(_cell, best), "", "", "", "", ""]]
    for entry in entries:
        link, sign = f"[{entry.name}](runs/{entry.name}/report.html)", _cell(entry.difference, "+")
        lines.append([link, entry.run.recipe.method.name, *map(_cell, entry.kids), str(entry.steps), sign])
        lines[-1] += [entry.verdict, f"{entry.train_s:,.0f} s", f"{entry.teacher_evaluations:,}"]
    note = "" if entries[0].difference.is_claim else f" {caution(null.samples)}"
    parts = [
        f"# Methods on {teacher_name(recipe.teacher)}",
        f"{found.kid} to the teacher's {found.many_steps}-step pictures at few steps, lower is nearer, with 95 % "
        f"intervals. The teacher itself at {found.many_steps} steps, on other noise: {_cell(null)}.{note}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *(["\n".join(errors)] if errors else []),
        "Recipes with equal plans share one data set; its teacher evaluations stand with each of them.",
        "![The same noise and prompts down each column](compare.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(number: Row | Claim, sign: str = "") -> str:
    return f"{number.value:{sign}.4f} [{number.low:{sign}.4f}, {number.high:{sign}.4f}]"
