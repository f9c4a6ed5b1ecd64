"""Every error of the API as RFC 9457 writes it: ``application/problem+json``, with the request's id in it."""

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
"""A client asks again after this time when the database doesn't answer."""
_FIELD_PROBLEMS_MAX: Final = 20
"""What is wrong with a body, in one answer; a body of a thousand wrong fields is answered with the first ones."""
_TEXT_CHARACTERS_MAX: Final = 2000
"""Of a detail: it may quote what the client sent."""

_log = structlog.get_logger("diskcast.api")


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(examples=["wait_for"], description="Where it stands; dots lead into objects.")
    message: str = Field(examples=["Input should be greater than or equal to 1"])


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Conflict"], description="The status in words.")
    status: int = Field(examples=[409])
    detail: str = Field(
        examples=["cast 1a2b3c4d has ended"], description="The thing, the cause and the mend."
    )
    instance: str = Field(
        examples=["9f86d081884c7d65"], description="The request's id, as in the log and in audit."
    )
    errors: list[FieldProblem] = Field(
        default_factory=list, description="With status 422: the fields that can't be used as they are."
    )


def problem_response(
    status: HTTPStatus,
    detail: str,
    request_id: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    """One error as an answer.

    Args:
        status: of HTTP.
        detail: the thing, the cause and the mend.
        request_id: of the request.
        headers: beside those that every answer has.
        errors: the fields that are wrong, each with ``field`` and ``message``.
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
    """JSON in ASCII with escapes: quoted text may hold half a surrogate pair, which UTF-8 can't write."""
    return json.dumps(document, ensure_ascii=True).encode("ascii")


def request_id_of(request: Request) -> str:
    """The id of a request, the same in its answer, the log and audit."""
    return str(request.scope.get("state", {}).get("request_id", ""))


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in ``error``; what isn't expected is logged whole and told in general."""
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
                str(error) if isinstance(error, DiskcastError) else "an error inside the daemon: see its log"
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
    """What pydantic found, in the words of the API's users: field names without ``body`` and ``query``."""
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
    first = errors[0] if errors else {"field": "request", "message": "it can't be read"}
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['field']}: {first['message']}{more}", errors
