"""Values that a config writes as text: how pydantic reads and writes them, and what the JSON schema says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

NUMBER = r"[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"


class Written(ABC):
    """A value that ``parse`` reads from text and ``str`` writes; ``schema_pattern`` tells editors how it looks."""

    schema_pattern: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, text: object) -> Written:
        """Raises ValueError, saying what is allowed."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": cls.schema_pattern}


def number_text(value: float) -> str:
    """A number without a needless ``.0``."""
    return str(int(value) if abs(value) < 1e16 and value == int(value) else value)
