"""Refuse unknown keys in every section of a recipe, and put what is wrong into one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from fewstep.orchestrator.errors import nearest


class Section(BaseModel):
    """A section of a recipe or a recipe itself; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Json = Mapping[str, object]
KINDS = {  # what pydantic would say of a wrong kind of value in the words of Python
    **dict.fromkeys(("model_type", "dict_type", "mapping_type"), "must be a section, with keys of its own"),
    "tuple_type": "must be a list, in brackets",
    "string_type": "must be text",
}


def sentence(error: ValidationError, model: type[BaseModel], section: str = "") -> str:
    """The first thing that is wrong with a `model`, as a person would say it."""
    first = error.errors()[0]
    where = ".".join(str(key) for key in (section, *first["loc"]) if key != "")
    if first["type"] == "extra_forbidden":
        return f"{where} is not a known key{nearest(str(first['loc'][-1]), _keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where} is missing"
    message = KINDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _keys(section: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys of the section that a path leads to inside a model; none where it leads elsewhere."""
    for key in path:
        if str(key) not in section.model_fields:
            return []
        inner = section.model_fields[str(key)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)
