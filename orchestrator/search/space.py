"""Builds the space of a search: what the method declares, narrowed or widened by the recipe, as Optuna reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fewstep.methods.search_space import Choice, LogUniform, Range, Uniform
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.recipe.parsing import vary
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.search import Span
from fewstep.orchestrator.recipe.training import Training

Space = Mapping[str, Range]  # by field, like "method.skip"
Params = Mapping[str, object]  # as Optuna keeps them: numbers of ranges, options as JSON


def space_of(recipe: Recipe) -> Space:
    """All that a search of this recipe varies. Raises BadInput where a name or a value would not do."""
    method = recipe.method.build()
    space = {f"method.{field}": declared for field, declared in method.space.items()}
    fields = [*(f"method.{name}" for name in method.__dataclass_fields__)]
    fields += [f"training.{name}" for name in Training.model_fields]
    for field, values in recipe.search.space.items():
        if field not in fields:
            raise BadInput(
                f"search.space: {field} is not a field that a trial could vary{nearest(field, fields)}; "
                f"those are method.* and training.*"
            )
        space[field] = _range(values) if isinstance(values, Span) else Choice(values)
    extremes = extremes_of(recipe, space)
    for field, values in extremes.items():
        for value in values:
            try:
                vary(recipe, {field: value})
            except BadInput as error:
                raise BadInput(f"search.space.{field}: {error}") from None
    if max((len(values) for values in extremes.values()), default=0) < 2:
        raise BadInput("search.space leaves nothing to vary; give some field a range or several options")
    return space


def extremes_of(recipe: Recipe, space: Space) -> dict[str, Sequence[object]]:
    """The options of each choice, and the ends of each range."""
    return {field: _extremes(range, is_whole(recipe, field)) for field, range in space.items()}


def distributions(recipe: Recipe, space: Space) -> dict[str, BaseDistribution]:
    """The space for Optuna. A choice is one of its options' JSON, which can be anything that a recipe can hold."""
    return {field: _distribution(range, is_whole(recipe, field)) for field, range in space.items()}


def changes_of(params: Params, space: Space) -> dict[str, object]:
    """What a trial changes in the recipe."""
    return {
        field: json.loads(str(value)) if isinstance(space[field], Choice) else value for field, value in params.items()
    }


def params_of(recipe: Recipe, space: Space) -> dict[str, object]:
    """The recipe as it is, as far as the space holds it; what it does not hold is left to the searcher."""
    params: dict[str, object] = {}
    for field, range in space.items():
        now = value_of(recipe, field)
        if isinstance(range, Choice):
            if json.dumps(now) in map(json.dumps, range.options):
                params[field] = json.dumps(now)
        elif isinstance(now, int | float) and range.low <= now <= range.high:
            params[field] = now
    return params


def grid_of(space: Space) -> dict[str, Sequence[str]]:
    """Every option of every field. Raises BadInput where a field has a range."""
    grid: dict[str, Sequence[str]] = {}
    for field, range in space.items():
        if not isinstance(range, Choice):
            raise BadInput(f"search.space.{field}: a grid has no ranges; list the values to try")
        grid[field] = [json.dumps(option) for option in range.options]
    return grid


def value_of(recipe: Recipe, field: str) -> object:
    """What a field of the recipe is, defaults filled in."""
    section, _, name = field.partition(".")
    values = recipe.resolved()[section]
    assert isinstance(values, Mapping)
    return json.loads(json.dumps(values[name]))


def is_whole(recipe: Recipe, field: str) -> bool:
    """Whether a range of this field is one of whole numbers."""
    now = value_of(recipe, field)
    return isinstance(now, int) and not isinstance(now, bool)


def _range(span: Span) -> Range:
    return (LogUniform if span.log else Uniform)(span.low, span.high)


def _extremes(range: Range, is_whole: bool) -> Sequence[object]:
    """The options of a choice, or the ends of a range."""
    if isinstance(range, Choice):
        return range.options
    return [int(end) if is_whole else end for end in (range.low, range.high)]


def _distribution(range: Range, is_whole: bool) -> BaseDistribution:
    if isinstance(range, Choice):
        return CategoricalDistribution([json.dumps(option) for option in range.options])
    kind = IntDistribution if is_whole else FloatDistribution
    low, high = _extremes(range, is_whole)
    return kind(low, high, log=isinstance(range, LogUniform))  # pyright: ignore[reportArgumentType]
