"""The fixtures of tests/orchestrator, shared."""

from __future__ import annotations

from tests.orchestrator.conftest import cluster, finished, make_recipe, recipe_data, s3, s3_url

__all__ = ["cluster", "finished", "make_recipe", "recipe_data", "s3", "s3_url"]
