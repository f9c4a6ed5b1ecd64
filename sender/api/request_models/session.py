"""The request body of a login."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from sender.api.guard.login_codes import CODE_PATTERN
from sender.api.request_models.request_body import RequestBody


class SessionInput(RequestBody):
    """A token, or a one-time code in its place."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}} for name in ("token", "code")
            ]
        }
    )

    token: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")] | None = (
        Field(default=None, examples=["dct_view_…"])
    )
    code: Annotated[str, StringConstraints(pattern=CODE_PATTERN)] | None = Field(
        default=None, examples=["dcl_…"], description="From `POST /session/codes`."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.token is None) == (self.code is None):
            raise ValueError("send either a token or a code")
        return self
