"""The bases of request bodies: strict pydantic models without unknown fields.

JSON types aren't coerced: ``"5"`` isn't a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RequestBody(BaseModel):
    """The base of request bodies: no unknown fields, no type coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class PatchBody(RequestBody):
    """The base of PATCH bodies: fields that aren't given stay unchanged."""

    def given(self) -> dict[str, Any]:
        """Return the fields that the client sent."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def omittable(kind: Callable[[], Any], **more: Any) -> Any:
    """Return a field that may be missing but not null; its default is never used and isn't in the OpenAPI document."""
    return Field(default_factory=kind, **more)
