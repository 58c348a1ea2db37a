"""Chooses what a round reads: which data set each of its sources comes from, and how stored rows become its columns."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

from fewstep.methods.base import Round
from fewstep.orchestrator.datasets.captioned_plans import ImportPlan
from fewstep.orchestrator.datasets.commit_log import open_commit_log
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.recipe.data import Trajectories
from fewstep.orchestrator.recipe.recipe import Recipe

DatasetKind = Literal["trajectories", "images", "imported"]


def dataset_kinds(recipe: Recipe, round: Round) -> dict[str, DatasetKind]:
    """The data set of each source.

    Real data comes from the recipe's images, where it has any; then a round that reads nothing that is sampled takes
    its prompts from their captions. Without images the teacher's own samples stand in. Those that were imported take
    the place of what the base teacher would sample.
    """
    real = {"data"} if is_sampled(round) else {"data", "prompts"}
    is_imported = recipe.data.imported and (round.teacher == "base" or not is_sampled(round))

    def dataset_kind(kind: str) -> DatasetKind:
        if recipe.data.images and kind in real:
            return "images"
        return "imported" if is_imported else "trajectories"

    return {name: dataset_kind(source.kind) for name, source in round.sources.items()}


def is_sampled(round: Round) -> bool:
    """Whether the round reads pairs or paths, which its own teacher makes."""
    return any(source.kind in ("path", "pairs") for source in round.sources.values())


def samples_teacher(recipe: Recipe, rounds: Collection[Round]) -> bool:
    """Whether any of the rounds reads what the teacher samples."""
    return any("trajectories" in dataset_kinds(recipe, round).values() for round in rounds)


def check_sources(recipe: Recipe) -> None:
    """Refuse what cannot be read, before anything starts."""
    rounds, trajectories, method = recipe.method.build().rounds(), recipe.trajectories, recipe.method.name
    if samples_teacher(recipe, rounds):
        if not trajectories.samples:
            other = "" if any(is_sampled(round) for round in rounds) else ", or from the real images of data.images"
            raise BadInput(f"trajectories.samples is missing; {method} learns from what the teacher samples{other}")
        sizes, shards = len(recipe.teacher.sizes), math.ceil(trajectories.samples / trajectories.shard_size)
        if sizes > shards:
            raise BadInput(
                f"teacher.resolution: each shard has one size, and there are {sizes} sizes and {shards} shards; lower "
                f"trajectories.shard_size={trajectories.shard_size}"
            )
    for round in rounds:
        for name, dataset_kind in dataset_kinds(recipe, round).items():
            _check_source(recipe, round.sources[name].kind, dataset_kind)


def _check_source(recipe: Recipe, kind: str, dataset_kind: DatasetKind) -> None:
    """Refuse a data set that lacks what a source of this kind promises."""
    save, method = recipe.trajectories.save, recipe.method.name
    if dataset_kind == "imported":
        _check_imported(recipe, kind)
    elif kind == "path" and save != "all":
        raise BadInput(f"trajectories.save is {save!r}, but {method} reads whole paths: set trajectories.save=all")


def _check_imported(recipe: Recipe, kind: str) -> None:
    """Refuse what was imported without what a source of this kind promises."""
    url, method = recipe.data.imported, recipe.method.name
    plan = open_commit_log(url).plan
    if not isinstance(plan, ImportPlan):
        raise BadInput(f"data.imported: {url} was not imported; its recipe reads it by trajectories.store")
    if kind == "path" or (kind == "pairs" and not plan.has_noise):
        need, content = ("whole paths" if kind == "path" else "pairs"), ("pairs" if plan.has_noise else "samples alone")
        raise BadInput(f"data.imported: {url} holds {content}, but {method} reads {need}; leave data.imported out")


def trajectories_of(recipe: Recipe, round: Round) -> Trajectories:
    """The recipe's trajectories with what the round asks of them."""
    overrides: dict[str, object] = {}
    for source in round.sources.values():
        fields = {
            "num_inference_steps": source.num_inference_steps,
            "solver": source.solver,
            "guidance_scale": source.guidance_scale if source.guidance_scale != (0.0, 0.0) else None,
        }
        overrides |= {name: value for name, value in fields.items() if value}
    if "guidance_scale" in overrides:
        overrides["guidance_scales"] = ()
    return recipe.trajectories.model_copy(update=overrides)
