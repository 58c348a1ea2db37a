"""Name a distillation method in a recipe, and build it from its own hyperparameters."""

from __future__ import annotations

import dataclasses

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fewstep.methods import METHODS
from fewstep.methods.base import Method
from fewstep.orchestrator.errors import BadInput, nearest
from fewstep.orchestrator.recipe.section import Json, Section, sentence


class MethodSpec(Section):
    """A distillation method by name, with the hyperparameters that are its own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        description="The method; its other keys are the method's own hyperparameters, whose defaults follow its paper."
    )

    def build(self) -> Method:
        """The method object. Raises BadInput for an unknown name or field, or a value that the method refuses."""
        if self.name not in METHODS:
            known = ", ".join(METHODS)
            raise BadInput(
                f"method.name: no method is called {self.name!r}{nearest(self.name, METHODS)}; known: {known}"
            )
        cls = METHODS[self.name]
        hyperparameters = dict(self.model_extra or {})
        known_fields = [field.name for field in dataclasses.fields(cls)]
        for key in hyperparameters:
            if key not in known_fields:
                raise BadInput(f"method.{key} is not a field of {self.name}{nearest(key, known_fields)}")
        try:
            return TypeAdapter(cls).validate_python(hyperparameters)
        except ValidationError as error:
            raise BadInput(sentence(error, type(self), "method")) from None

    def resolved(self) -> Json:
        """Every field of the method, defaults filled in."""
        return {"name": self.name} | dataclasses.asdict(self.build())
