"""Tell whether two recipes describe the same run, and list the fields that differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.section import Json


def identity(resolved: Mapping[str, object]) -> Json:
    """The fields that results depend on; a run may continue on other resources and be exported or logged otherwise."""
    others = ("export", "resources", "search", "output", "trackers")
    return {key: value for key, value in resolved.items() if key not in others}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the recipe's identity, in hexadecimal."""
    return hashlib.sha256(json.dumps(identity(recipe.resolved()), sort_keys=True).encode()).hexdigest()


def compare(there: Mapping[str, object], here: Mapping[str, object], prefix: str = "") -> list[tuple[str, str, str]]:
    """The fields that differ: (name, value there, value here)."""
    differences: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key, "absent"), here.get(key, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differences += compare(a, b, f"{prefix}{key}.")
        elif json.loads(json.dumps(a)) != json.loads(json.dumps(b)):
            differences.append((f"{prefix}{key}", json.dumps(a), json.dumps(b)))
    return differences
