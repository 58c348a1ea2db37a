"""Quality against training steps and against seconds, of runs that were judged while they trained.

python curves.py RUN... --picture curves.png     # outputs of `fewstep train`; prints the points as JSON

Seconds are those of training steps alone. Of a run that learns from stored paths they are drawn a second time, dotted,
after the seconds that sampling them took.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from fewstep.orchestrator.observability import metrics
from fewstep.orchestrator.runs.run import Run, reopen, round_folder
from fewstep.orchestrator.training.validation import metric_of

Point = tuple[float, float, float]  # steps, seconds, KID


def main(folders: list[str], picture: str) -> None:
    """Draw and print."""
    figure = Figure((10, 4), layout="constrained")
    by_steps, by_seconds = figure.subplots(1, 2, sharey=True)
    for number, folder in enumerate(folders):
        run, colour = reopen(Path(folder)), f"C{number}"
        steps, seconds, kid = zip(*points(run), strict=True)
        facts = {"run": run.folder.name, "steps": steps, "seconds": seconds, "kid": kid}
        by_steps.plot(steps, kid, color=colour, label=run.folder.name)
        by_seconds.plot(seconds, kid, color=colour, label=run.folder.name)
        if not run.recipe.method.build().rounds()[-1].online:
            sampling_s = run.recorded("stages", "generate")
            if not isinstance(sampling_s, int | float):
                raise TypeError(f"{folder}: the seconds that generating took are no number: {sampling_s!r}")
            facts["sampling_s"] = float(sampling_s)
            after = [sampling_s + second for second in seconds]
            by_seconds.plot(after, kid, color=colour, linestyle="dotted", label=f"{run.folder.name}, sampling first")
        print(json.dumps(facts))
    for axes, name in ((by_steps, "training steps"), (by_seconds, "seconds")):
        axes.set_xlabel(name)
        axes.grid(visible=True, alpha=0.3)
    by_steps.set_ylabel(f"KID at {run.recipe.method.build().student_steps} steps to the teacher's pictures")
    by_seconds.legend()
    figure.savefig(picture, dpi=120)


def points(run: Run) -> list[Point]:
    """Of the last round, in order."""
    rounds = run.recipe.method.build().rounds()
    rows = metrics.read(round_folder(run.folder, len(rounds), rounds[-1]) / "metrics.jsonl")
    seconds, curve = 0.0, list[Point]()
    for before, row in pairwise(rows):
        seconds += (row["step"] - before["step"]) * row.get("time/step_s", 0.0)
        if metric_of(run.recipe) in row:
            curve.append((row["step"], round(seconds, 1), round(row[metric_of(run.recipe)], 4)))
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--picture", required=True)
    args = parser.parse_args()
    main(args.runs, args.picture)
