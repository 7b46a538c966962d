"""Building blocks of the sections: strict models, unions of them, and detection of keys without effect."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


Section = TypeVar("Section", bound="Strict")


class Strict(BaseModel):
    """A section: unknown keys are errors, and values cannot change after loading.

    Attributes:
        chosen_by: for members of a union: the key whose value selects the member.
        implied: for members of a union: keys of other members → a value that may be written because it describes this
            member, too. Such a key has no field and is not listed.
        first_keys: for the base of a union's members: the keys listed first. A member's own keys come next, then the
            remaining shared ones.
        last_keys: for the same base: keys listed after all others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())

    chosen_by: ClassVar[str] = "name"
    implied: ClassVar[Mapping[str, Any]] = {}
    first_keys: ClassVar[tuple[str, ...]] = ()
    last_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Implied keys are ``patternProperties``, because editors do not complete those."""
        written = handler(schema)
        if cls.implied:
            allowed = {f"^{key}$": {"const": value} for key, value in cls.implied.items()}
            handler.resolve_ref_schema(written)["patternProperties"] = allowed
        return written

    def ignored(self) -> dict[str, str]:
        """Keys that the section's other settings leave without effect → the reason, phrased to follow the key.

        Setting such a key is an error, and a resolved config does not list it.
        """
        return {}

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Strict:
        for key, reason in self.ignored().items():
            if key in self.model_fields_set:
                raise ValueError(f"{key} {reason}")
        return self


class OneOf:
    """Marks a union of sections, ``Annotated[A | B, ONE_OF]``. The first member is the default."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choice = choice_of(source)
        assert choice is not None, "a union of sections"
        members = {name: handler.generate_schema(model) for name, model in choice.models.items()}
        return core_schema.tagged_union_schema(members, discriminator=choice.name_in)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        # not oneOf: a file may inherit the discriminating key through extends, and then several members can match
        return {"anyOf" if key == "oneOf" else key: value for key, value in written.items()}


ONE_OF = OneOf()


class Choice(NamedTuple):
    """A union of sections: the discriminating key and the models it selects from, the default first."""

    key: str
    models: dict[str, type[Strict]]

    @property
    def default(self) -> str:
        """The value of ``key`` if it is not written."""
        return next(iter(self.models))

    def name_in(self, section: Any) -> str:
        """The value of ``key`` in a section, which may be unknown to ``models``."""
        if isinstance(section, dict):
            return str(section.get(self.key, self.default))
        return str(getattr(section, self.key, section))

    @property
    def base(self) -> type[Strict]:
        """The class that all models extend."""
        of_first = next(iter(self.models.values())).__mro__
        return next(base for base in of_first if all(issubclass(model, base) for model in self.models.values()))

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys of all models: shared keys first, then each model's own."""
        of_all: dict[str, FieldInfo] = {}
        for key, info in (item for model in self.models.values() for item in fields_of(model).items()):
            of_all.setdefault(key, info)
        return dict(sorted(of_all.items(), key=lambda item: len(self.owners(item[0])) < len(self.models)))

    def owners(self, key: str) -> list[str]:
        """Names of the models that have a key."""
        return [name for name, model in self.models.items() if key in fields_of(model)]


def choice_of(annotation: Any) -> Choice | None:
    """The union of sections in an annotation; None if it is not such a union."""
    models = models_in(annotation)
    if len(models) < 2:
        return None
    key = models[0].chosen_by
    return Choice(key, {model.model_fields[key].default: model for model in models})


def members_of(union: Any, base: type[Section]) -> dict[str, type[Section]]:
    """Name → model, of those models of a union that extend ``base``."""
    choice = choice_of(union)
    assert choice is not None, "a union of sections"
    return {name: model for name, model in choice.models.items() if issubclass(model, base)}


def names_of(union: Any, which: Callable[[Any], bool]) -> list[str]:
    """Names of the models of a union for which ``which`` is true."""
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
    """Key as written in YAML → field, in listing order."""
    fields = {info.alias or name: info for name, info in schema.model_fields.items()}
    base = next((base for base in schema.__mro__ if "first_keys" in vars(base)), None)
    if base is None or not issubclass(base, Strict):
        return fields
    first = [key for key in base.first_keys if key in fields]
    own = [key for key in fields if key not in base.model_fields]
    listed = dict.fromkeys((*first, *own, *fields))
    return {key: fields[key] for key in sorted(listed, key=lambda key: key in base.last_keys)}
