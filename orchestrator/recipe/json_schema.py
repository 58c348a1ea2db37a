"""Make JSON schemas of recipes and cluster files, for editors, from the models that read them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from fewstep.methods import METHODS
from fewstep.methods.base import Method
from fewstep.orchestrator.recipe.recipe import Recipe

Schema = dict[str, Any]  # JSON, as pydantic makes it
DIALECT = "https://json-schema.org/draft/2020-12/schema"
METHOD_SPEC = "MethodSpec"  # the definition that pydantic makes of the section `method`


class _Untitled(GenerateJsonSchema):
    """pydantic's schema without a title for each field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def recipe_schema() -> Schema:
    """The schema of a recipe, whose `method` is one of all that there are, with the fields of its own."""
    schema = Recipe.model_json_schema(schema_generator=_Untitled)
    for section in schema["properties"].values():
        if "$ref" in section:
            section.pop("default", None)  # all defaults of the section again
    schema["$defs"][METHOD_SPEC] = {
        "description": schema["$defs"][METHOD_SPEC]["description"],
        "oneOf": [_method_schema(name, method) for name, method in METHODS.items()],
    }
    return {"$schema": DIALECT, **schema}


def cluster_schema(kinds: Mapping[str, type[BaseModel]]) -> Schema:
    """The schema of a cluster file, which is of one of these kinds."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(kind, "validation") for kind in kinds.values()]
    references, definitions = models_json_schema(models, schema_generator=_Untitled)
    return {"$schema": DIALECT, "title": "Cluster", "oneOf": list(references.values()), **definitions}


def _method_schema(name: str, method: type[Method]) -> Schema:
    """The schema of the section `method` for one method: its name, and the fields of its dataclass."""
    properties = TypeAdapter(method).json_schema(schema_generator=_Untitled)["properties"]
    for field, comment in _comments(method).items():
        properties[field]["description"] = comment
    what_it_does, *_ = inspect.cleandoc(method.__doc__ or "").split("\n\n")
    return {
        "title": name,
        "description": f"{what_it_does} arXiv:{method.paper}",
        "type": "object",
        "properties": {"name": {"const": name}, **properties},
        "required": ["name"],
        "additionalProperties": False,
    }


def _comments(method: type[Method]) -> dict[str, str]:
    """What the comments beside its fields say of them: methods import torch alone, so they have no pydantic fields."""
    lines = re.finditer(r"^    (\w+): [^#\n]*# (.+)$", inspect.getsource(method), re.MULTILINE)
    names = {field.name for field in dataclasses.fields(method)}
    return {line[1]: line[2] for line in lines if line[1] in names}
