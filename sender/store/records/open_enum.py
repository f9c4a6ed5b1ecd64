"""Enums whose values may become more: plain text in the API's document, so that clients accept later values."""

from __future__ import annotations

import enum
from collections.abc import Callable


class OpenStrEnum(enum.StrEnum):
    """A text enum that the API's document shows as any text."""

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
