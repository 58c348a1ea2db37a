"""Does what the commands do with data sets: make, import, verify, repair, clean, show. Each returns its facts."""

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
        datasets = make_round_data(opened, 0)
    facts = {
        dataset_kind: {
            "path": dataset.url,
            "manifest": dataset.version,
            "content_hash": dataset.content_hash,
            "shards": dataset.shards,
            "rows": dataset.rows,
        }
        for dataset_kind, dataset in datasets.items()
    }
    return {**facts, "quarantined": report_quarantined(datasets.values())}


def import_data(recipe: Recipe, source: str, store: str) -> Json:
    """Samples that were made elsewhere, as a data set of ours."""
    dataset = import_samples(recipe, source, store)
    url, rows, shards = dataset.url, dataset.rows, dataset.shards
    say(f"imported: {rows} rows in {shards} shards; train on them with data.imported={url}")
    facts = {"path": url, "content_hash": dataset.content_hash, "shards": shards, "rows": rows}
    return {**facts, "quarantined": report_quarantined([dataset])}


def verify(path: str) -> Json:
    """Every file of a data set against its hash."""
    result = open_commit_log(path).verify()
    for record in result.broken:
        say(f"{record.shard} {record.why}; mend it with `fewstep repair {path}`")
    if not result.broken:
        say(f"{result.shards} shards, {result.rows} rows, all as committed; content {result.content_hash}")
    return dataclasses.asdict(result)


def repair(path: str) -> Json:
    """The broken shards again."""
    dataset = repair_data(path, Resources())
    say(f"version {dataset.version}: {dataset.shards} shards, {dataset.rows} rows; content {dataset.content_hash}")
    return {
        "manifest": dataset.version,
        "content_hash": dataset.content_hash,
        "quarantined": report_quarantined([dataset]),
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


def report_quarantined(datasets: Iterable[Generated]) -> list[Mapping[str, str]]:
    """Say which shards were set aside, and why; the same as plain data."""
    shards = [shard for dataset in datasets for shard in dataset.quarantined]
    for shard in shards:
        say(f"shard {shard.shard} was set aside: {shard.why}")
    return [dataclasses.asdict(shard) for shard in shards]
