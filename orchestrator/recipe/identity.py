"""Which fields make two runs the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json


def identity(resolved: Mapping[str, object]) -> Json:
    """What makes a run what it is; it may continue on other resources, be followed elsewhere and exported otherwise."""
    others = ("export", "resources", "search", "output", "trackers")
    return {key: value for key, value in resolved.items() if key not in others}


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of the recipe's identity."""
    return hashlib.sha256(json.dumps(identity(recipe.resolved()), sort_keys=True).encode()).hexdigest()


def compare(there: Mapping[str, object], here: Mapping[str, object], prefix: str = "") -> list[tuple[str, str, str]]:
    """The fields that differ: (name, value there, value here)."""
    found: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key, "absent"), here.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += compare(a, b, f"{prefix}{key}.")
        elif json.loads(json.dumps(a)) != json.loads(json.dumps(b)):
            found.append((f"{prefix}{key}", json.dumps(a), json.dumps(b)))
    return found
