"""What every section is made of: strict models, unions of them, and the keys that they leave without effect."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A section: unknown keys are errors, values cannot change after loading.

    Attributes:
        chosen_by: of the members of a union: the key whose value says which of them a section is.
        not_offered: of the members of a union: values of that key that people ask for, each with why there is none.
        first_keys: of the base of a union's members: the keys that are listed first. A member's own keys come next,
            then the remaining shared ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())

    chosen_by: ClassVar[str] = "name"
    not_offered: ClassVar[Mapping[str, str]] = {}
    first_keys: ClassVar[tuple[str, ...]] = ()

    def ignored(self) -> dict[str, str]:
        """Keys without effect beside the section's other settings, each with the reason: the end of "KEY …".

        Such a key is an error where it is written, and a resolved config does not list it.
        """
        return {}

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Strict:
        for key, reason in self.ignored().items():
            if key in self.model_fields_set:
                raise ValueError(f"{key} {reason}")
        return self


class OneOf:
    """Marks a union of sections, ``Annotated[A | B, ONE_OF]``: the first member is the one where no key chooses."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choice = choice_of(source)
        assert choice is not None, "a union of sections"
        members = {name: handler.generate_schema(model) for name, model in choice.models.items()}
        return core_schema.tagged_union_schema(members, discriminator=choice.name_in)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        # not oneOf: without the key that chooses, which a file may leave to the one that it extends, several can fit
        return {"anyOf" if key == "oneOf" else key: value for key, value in written.items()}


ONE_OF = OneOf()


class Choice(NamedTuple):
    """A union of sections: the key that chooses, and what it chooses from, the default first."""

    key: str
    models: dict[str, type[Strict]]

    @property
    def default(self) -> str:
        """The value of ``key`` where it is not written."""
        return next(iter(self.models))

    def name_in(self, section: Any) -> str:
        """The value of ``key`` in a section, whether it is one of ``models`` or not."""
        if isinstance(section, dict):
            return str(section.get(self.key, self.default))
        return str(getattr(section, self.key, section))

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys of all models: those that they share first, then each model's own."""
        of_all: dict[str, FieldInfo] = {}
        for key, info in (item for model in self.models.values() for item in fields_of(model).items()):
            of_all.setdefault(key, info)
        return dict(sorted(of_all.items(), key=lambda item: len(self.owners(item[0])) < len(self.models)))

    def owners(self, key: str) -> list[str]:
        """Names of the models that have a key."""
        return [name for name, model in self.models.items() if key in fields_of(model)]


def choice_of(annotation: Any) -> Choice | None:
    """The union of sections that an annotation is; None where it is none."""
    models = models_in(annotation)
    if len(models) < 2:
        return None
    key = models[0].chosen_by
    return Choice(key, {model.model_fields[key].default: model for model in models})


def names_of(union: Any, which: Callable[[Any], bool]) -> list[str]:
    """Names of the models of a union for which a question is answered by yes."""
    choice = choice_of(union)
    assert choice is not None, "a union of sections"
    return [name for name, model in choice.models.items() if which(model)]


def models_in(annotation: Any) -> list[type[Strict]]:
    """The sections that an annotation allows."""
    return [option for option in options_of(annotation) if isinstance(option, type) and issubclass(option, Strict)]


def options_of(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without Annotated and unions."""
    if get_origin(annotation) is Annotated:
        return options_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(option for part in get_args(annotation) for option in options_of(part))
    return (annotation,)


def fields_of(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Key as it is written → field, in the order in which keys are listed."""
    fields = {info.alias or name: info for name, info in schema.model_fields.items()}
    base = next((base for base in schema.__mro__ if "first_keys" in vars(base)), None)
    if base is None or not issubclass(base, Strict):
        return fields
    first = [key for key in base.first_keys if key in fields]
    own = [key for key in fields if key not in first and key not in base.model_fields]
    return {key: fields[key] for key in dict.fromkeys((*first, *own, *fields))}
