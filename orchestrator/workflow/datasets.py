"""Makes data sets: generate, import, repair. Each command returns its facts as plain data, for --json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from fewstep.orchestrator.datasets.sources import check_sources
from fewstep.orchestrator.generation.data_sets import import_samples
from fewstep.orchestrator.generation.factory import Generated
from fewstep.orchestrator.generation.repair import repair as repair_data
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.recipe.section import Json
from fewstep.orchestrator.runs.run import Run
from fewstep.orchestrator.workflow.round_data import make_round_data


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


def repair(path: str) -> Json:
    """The broken shards again."""
    dataset = repair_data(path, Resources())
    say(f"version {dataset.version}: {dataset.shards} shards, {dataset.rows} rows; content {dataset.content_hash}")
    return {
        "manifest": dataset.version,
        "content_hash": dataset.content_hash,
        "quarantined": report_quarantined([dataset]),
    }


def report_quarantined(datasets: Iterable[Generated]) -> list[Mapping[str, str]]:
    """Say which shards were set aside, and why; the same as plain data."""
    shards = [shard for dataset in datasets for shard in dataset.quarantined]
    for shard in shards:
        say(f"shard {shard.shard} was set aside: {shard.why}")
    return [dataclasses.asdict(shard) for shard in shards]
