"""Hints of records for the API's document. pydantic reads them; the records don't import it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any


class ClosedObject:
    """A record that the document shows without additional properties; clients ignore them."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """Return pydantic's JSON schema of the record, closed."""
        reference: dict[str, Any] = handler(schema)
        handler.resolve_ref_schema(reference)["additionalProperties"] = False
        return reference


class OpenStrEnum(enum.StrEnum):
    """A text enum that the API's document shows as any text, so that clients accept values that are added later."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: object, handler: Callable[[type[str]], object]
    ) -> dict[str, object]:
        """Return pydantic's schema: a text that is converted to a member."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": cls},
            "schema": handler(str),
        }
