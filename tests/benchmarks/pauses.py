"""What a report and a checkpoint cost the demo's training: milliseconds in which two workers do nothing else.

    python -m tests.benchmarks.pauses [--steps 60]

`fewstep train` with a watch on both. The ratio is the share of the time that they take at the intervals that a recipe
has by default; `every` is the interval in steps that keeps the share at 1 %. Prints JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fewstep.orchestrator.recipe.parsing import load
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.training import driver as train
from fewstep.orchestrator.training import round_trainer as trainer
from fewstep.orchestrator.workflow import stages
from tests.benchmarks import TEACHERS
from tests.benchmarks.firststep import Parts
from tests.benchmarks.ratio import Row, median_of, show

PAUSES = {"report": "_report", "checkpoint": "_save"}  # and what of Trainee does it
INTERVALS = {"report": "log_every", "checkpoint": "checkpoint_every"}  # the fields of a recipe, in steps


def worker(notes: str, config: Mapping[str, dict[str, object]]) -> object:
    """One rank of a round; the first one writes what each pause took, and the whole loop."""
    parts = Parts()
    for name, method in PAUSES.items():
        setattr(trainer.RoundTrainer, method, parts.timed(name, getattr(trainer.RoundTrainer, method)))
    trainer.train = parts.timed("loop", trainer.train)
    result = train.train_worker(config)
    if not train.ray.train.get_context().get_world_rank():
        Path(notes).write_text(json.dumps(parts.seconds))
    return result


def main(steps: int) -> Iterator[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        notes = f"{folder}/seconds.json"
        told = {
            "output": f"{folder}/run",
            "trajectories.samples": 64,
            "trajectories.shard_size": 64,
            "training.steps": steps,
            "training.log_every": 2,
            "training.checkpoint_every": steps // 6,
        }
        train.train_worker = functools.partial(worker, notes)
        stages.train(load(str(TEACHERS["emoji"].parents[1] / "emoji-lcm.yaml"), [f"{k}={v}" for k, v in told.items()]))
        seconds: dict[str, list[float]] = json.loads(Path(notes).read_text())
    (loop,) = seconds["loop"]
    step = (loop - sum(sum(seconds[name]) for name in PAUSES)) / steps
    for name, field in INTERVALS.items():
        interval: int = Training.model_fields[field].default
        pauses = seconds[name][1:]  # the first warms up
        share = [pause / (pause + interval * step) for pause in pauses]
        cost = statistics.median(pauses)
        facts = {
            "interval": interval,
            "ms": round(1e3 * cost, 2),
            "step_ms": round(1e3 * step, 1),
            "every": math.ceil(99 * cost / step),
        }
        yield {"benchmark": f"training, {name}", **median_of(share), **facts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    show(main(parser.parse_args().steps))
