"""workflow/datasets.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table

from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.datasets.sources import check_sources
from fewstep.orchestrator.generation.factory import Generated
from fewstep.orchestrator.generation.generate import import_samples
from fewstep.orchestrator.generation.repair import repair as repair_data
from fewstep.orchestrator.observability.console import console, say
from fewstep.orchestrator.observability.durations import seconds_of
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.runs.run import Run
from fewstep.orchestrator.workflow.inspection import describe_dataset, draw_dataset
from fewstep.orchestrator.workflow.round_data import make_round_data


def print_facts(facts: Json) -> None:
    """Names and values, one a line."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    console.print(table)


def generate(recipe: Recipe) -> Json:
    """The trajectories alone."""
    check_sources(recipe)
    opened = Run(recipe)
    with opened.driven():
        made = make_round_data(opened, 0)
    parts = {
        dataset_kind: {
            "path": part.url,
            "manifest": part.version,
            "content_hash": part.content_hash,
            "shards": part.shards,
            "rows": part.rows,
        }
        for dataset_kind, part in made.items()
    }
    return {**parts, "quarantined": _quarantined(made.values())}


def import_data(recipe: Recipe, source: str, store: str) -> Json:
    """Samples that were made elsewhere, as a data set of ours."""
    made = import_samples(recipe, source, store)
    say(f"imported: {made.rows} rows in {made.shards} shards; train on them with data.imported={made.url}")
    facts = {"path": made.url, "content_hash": made.content_hash, "shards": made.shards, "rows": made.rows}
    return {**facts, "quarantined": _quarantined([made])}


def verify(path: str) -> Json:
    """Every file of a data set against its hash."""
    found = open_commit_log(path).verify()
    for record in found.broken:
        say(f"{record.shard} {record.why}; mend it with `fewstep repair {path}`")
    if not found.broken:
        say(f"{found.shards} shards, {found.rows} rows, all as committed; content {found.content_hash}")
    return dataclasses.asdict(found)


def repair(path: str) -> Json:
    """The broken shards again."""
    made = repair_data(path, Resources())
    say(f"version {made.version}: {made.shards} shards, {made.rows} rows; content {made.content_hash}")
    return {
        "manifest": made.version,
        "content_hash": made.content_hash,
        "quarantined": _quarantined([made]),
    }


def clean(path: str, older_than: str) -> Json:
    """What writers left behind."""
    removed = open_commit_log(path).clean(seconds_of(older_than, "--older-than"))
    say(f"removed {removed.files} files, {removed.bytes:,} bytes, all older than {older_than}")
    return dataclasses.asdict(removed)


def show(path: str, samples: int, out: str) -> Json:
    """What a data set is, and a picture of it."""
    facts = describe_dataset(path)
    print_facts(facts)
    draw_dataset(path, samples, Path(out))
    say(f"picture: {out}")
    return {**facts, "picture": out}


def _quarantined(made: Iterable[Generated]) -> list[Mapping[str, str]]:
    found = [shard for part in made for shard in part.quarantined]
    for shard in found:
        say(f"shard {shard.shard} was set aside: {shard.why}")
    return [dataclasses.asdict(shard) for shard in found]
