"""Error responses: ``application/problem+json`` (RFC 9457) with the request id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from protocol.control.control_messages import PROBLEM_TYPE
from protocol.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseFullError,
    DiskcastError,
    ImageError,
    ProtocolError,
)
from sender.refusals import RequestRefusedError
from sender.store.database.errors import ConflictError

DATABASE_RETRY_S: Final = 5
"""Retry-After while the database is unavailable."""
_FIELD_PROBLEMS_MAX: Final = 20
"""Field errors in one response; a body with a thousand wrong fields gets the first of them."""
_TEXT_CHARACTERS_MAX: Final = 2000
"""Limit of a detail, since it may quote the request."""

_log = structlog.get_logger("diskcast.api")


class FieldProblem(BaseModel):
    """An error in one field of a request."""

    field: str = Field(examples=["wait_for"], description="Path of the field; dots separate nested objects.")
    message: str = Field(examples=["Input should be greater than or equal to 1"])


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Conflict"], description="Phrase of the HTTP status.")
    status: int = Field(examples=[409])
    detail: str = Field(examples=["cast 1a2b3c4d has ended"], description="The thing, the cause and the fix.")
    instance: str = Field(
        examples=["9f86d081884c7d65"], description="Request id, as in the log and the audit."
    )
    errors: list[FieldProblem] = Field(default_factory=list, description="Invalid fields, with status 422.")


def problem_response(
    status: HTTPStatus,
    detail: str,
    request_id: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    """Return an error response.

    Args:
        status: the HTTP status.
        detail: the thing, the cause and the fix.
        request_id: the id of the request.
        headers: additional headers.
        errors: invalid fields, each with ``field`` and ``message``.
    """
    document: dict[str, object] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": detail[:_TEXT_CHARACTERS_MAX],
        "instance": request_id,
    }
    if errors:
        document["errors"] = list(errors)
    return Response(
        ascii_json(document), status_code=status, headers=dict(headers or {}), media_type=PROBLEM_TYPE
    )


def ascii_json(document: object) -> bytes:
    """Return JSON as ASCII: quoted text may hold half a surrogate pair, which UTF-8 can't encode."""
    return json.dumps(document, ensure_ascii=True).encode("ascii")


def request_id_of(request: Request) -> str:
    """Return the id of a request, as in its response, the log and the audit."""
    return str(request.scope.get("state", {}).get("request_id", ""))


async def error_response(request: Request, error: Exception) -> Response:
    """Return the response to a request that failed with ``error``; log unexpected errors, but don't show them."""
    headers: Mapping[str, str] | None = None
    errors: list[dict[str, str]] = []
    match error:
        case HTTPException():
            status, detail, headers = _status(error.status_code), str(error.detail), error.headers
        case RequestValidationError():
            status, detail, errors = _validation(error)
        case RequestRefusedError():
            status, detail = error.status, str(error)
        case DatabaseFullError():
            status, detail = HTTPStatus.INSUFFICIENT_STORAGE, str(error)
            headers = {"Retry-After": str(12 * DATABASE_RETRY_S)}
        case DatabaseError():
            status, detail = HTTPStatus.SERVICE_UNAVAILABLE, str(error)
            headers = {"Retry-After": str(DATABASE_RETRY_S)}
        case ProtocolError():
            status, detail = HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
            field, colon, message = detail.partition(": ")
            errors = [{"field": field, "message": message} if colon else {"field": "", "message": detail}]
        case ConflictError():
            status, detail = HTTPStatus.CONFLICT, str(error)
        case ConfigurationError():
            status, detail = HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
        case ImageError():
            status, detail = HTTPStatus.CONFLICT, str(error)
        case _:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            detail = (
                str(error) if isinstance(error, DiskcastError) else "internal error: see the daemon's log"
            )
            _log.error("request_failed", exc_info=error)
    if headers is None and status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(DATABASE_RETRY_S)}
    return problem_response(status, detail, request_id_of(request), headers=headers, errors=errors)


def _status(code: int) -> HTTPStatus:
    try:
        return HTTPStatus(code)
    except ValueError:
        return HTTPStatus.INTERNAL_SERVER_ERROR


def _validation(error: RequestValidationError) -> tuple[HTTPStatus, str, list[dict[str, str]]]:
    """Return pydantic's errors with field names as clients know them, without ``body`` and ``query``."""
    found = error.errors()
    if found and found[0].get("type") == "json_invalid":
        return HTTPStatus.BAD_REQUEST, f"the body isn't JSON: {found[0].get('ctx', {}).get('error', '')}", []
    errors = []
    for problem in found[:_FIELD_PROBLEMS_MAX]:
        place = [str(part)[:64] for part in problem.get("loc", ())]
        if place and place[0] in ("body", "query", "path", "header", "cookie"):
            place = place[1:] or place
        message = str(problem.get("msg", "")).removeprefix("Value error, ")[:300]
        errors.append({"field": ".".join(place), "message": message})
    first = errors[0] if errors else {"field": "request", "message": "invalid"}
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['field']}: {first['message']}{more}", errors
