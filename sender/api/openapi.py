"""Completion of the OpenAPI document with the checks of the route guard, which FastAPI doesn't know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from protocol.constants import INVENTORY_ENTRIES_MAX, INVENTORY_KEY_BYTES_MAX, INVENTORY_VALUE_BYTES_MAX
from protocol.control.capture_messages import (
    CAPTURE_ASSIGNMENT,
    CAPTURE_END,
    CAPTURE_FAILURE,
    CAPTURE_POSITION,
    CAPTURE_RESULT,
    CAPTURE_START,
    SPAN_ANSWER,
)
from protocol.control.check_in import ASSIGNMENT, CAST_OUTCOME, CHECK_IN, CHECK_IN_ANSWER
from protocol.control.control_messages import API_BASE, PROBLEM_TYPE
from protocol.control.hardware_record import (
    DISK_HEALTH,
    HARDWARE,
    HARDWARE_CARD,
    HARDWARE_CONTROLLER,
    HARDWARE_DISK,
)
from protocol.control.image_requests import IMAGE_CHOICE, LIBRARY_IMAGE, LIBRARY_IMAGES, REQUEST_STATUS
from protocol.schema.json_fields import (
    Address,
    Boolean,
    ChoiceField,
    DecimalText,
    HardwareAddresses,
    HexBytes,
    HexData,
    HexInteger,
    Integer,
    InventoryField,
    JsonField,
    JsonRecord,
    Listed,
    Number,
    Optional,
    PrintableLines,
    PrintableText,
)
from sender.api.guard.auth import SESSION_COOKIE, Access
from sender.api.guard.guarded_route import Body, Operation, Repeat
from sender.api.guard.idempotency import KEY_HEADER, KEY_PATTERN, REPLAYED_HEADER
from sender.api.guard.problems import ProblemDocument

_MEANINGS: Final = {
    HTTPStatus.BAD_REQUEST: "The body can't be parsed.",
    HTTPStatus.UNAUTHORIZED: "The token is missing, unknown or expired.",
    HTTPStatus.FORBIDDEN: "The token's role doesn't allow this, or the request is cross-site.",
    HTTPStatus.NOT_FOUND: "The resource doesn't exist.",
    HTTPStatus.REQUEST_TIMEOUT: "The body didn't arrive in time.",
    HTTPStatus.CONFLICT: "The current state doesn't allow this.",
    HTTPStatus.GONE: "The capture has ended.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body has the wrong type.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field is invalid; `errors` names it.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many wrong tokens from this address.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Internal error; see the daemon's log.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The database is unavailable, or the daemon is stopping; retry.",
    HTTPStatus.INSUFFICIENT_STORAGE: "The disk of the database is full.",
}
_RETRIED: Final = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE}
)
_REQUEST_ID_HEADER: Final = {
    "X-Request-Id": {
        "description": "Request id: the client's, if it sent a valid one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    }
}


def complete_document(document: dict[str, Any], operations: Iterable[Operation]) -> dict[str, Any]:
    """Add security, errors, headers and the bodies that FastAPI doesn't parse to FastAPI's ``document``."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = ProblemDocument.model_json_schema(
        ref_template="#/components/schemas/{model}", mode="serialization"
    )
    schemas.update(problem.pop("$defs", {}))
    schemas["ProblemDocument"] = problem
    schemas.update(_agent_schemas())
    document["components"]["responses"] = {_response_name(status): _problem(status) for status in _MEANINGS}
    for schema in schemas.values():
        _without_titles(schema)
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The secret of a token."},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": SESSION_COOKIE,
            "description": "Cookie for the dashboard, set by `POST /session`.",
        },
    }
    for operation in operations:
        if operation.tag:
            path = operation.path if operation.own_path else API_BASE + operation.path
            _complete(document["paths"][path][operation.method.lower()], operation, path)
    return document


def _complete(entry: dict[str, Any], operation: Operation, path: str) -> None:
    _, _, text = (operation.endpoint.__doc__ or "").partition("\n")
    text = " ".join(text.split()).replace("``", "`")
    entry["description"] = f"{text}\n\nRole: {_role(operation.access)}.".strip()
    entry["security"] = [] if operation.access is Access.OPEN else [{"token": []}, {"session": []}]
    for parameter in entry.get("parameters", ()):
        _complete_parameter(parameter)
    responses = entry["responses"]
    success = responses[str(int(operation.status))]
    success["headers"] = dict(_REQUEST_ID_HEADER)
    success["description"] = operation.status.phrase
    if operation.media_type != "application/json":
        success["content"] = {operation.media_type.partition(";")[0]: {"schema": {"type": "string"}}}
    if operation.repeat is Repeat.SAME_RESPONSE:
        success["headers"][REPLAYED_HEADER] = {
            "description": "true: the response to an earlier request with the same key.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    if operation.repeat is not Repeat.UNGUARDED:
        entry.setdefault("parameters", []).append(_key_parameter(operation.repeat))
    _complete_body(entry, operation)
    for status in _problems(operation, path):
        responses[str(int(status))] = {"$ref": f"#/components/responses/{_response_name(status)}"}
    entry["responses"] = dict(sorted(responses.items()))


def _problems(operation: Operation, path: str) -> list[HTTPStatus]:
    """Return the errors that an operation can return."""
    found = {HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.FORBIDDEN, *operation.problems}
    if operation.access is not Access.OPEN:
        found |= {
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.SERVICE_UNAVAILABLE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        }
    if "{" in path:
        found.add(HTTPStatus.NOT_FOUND)
    if operation.body is not Body.NONE:
        found |= {
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.REQUEST_TIMEOUT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.SERVICE_UNAVAILABLE,
        }
    if operation.method != "GET" and operation.access is not Access.OPEN:
        found.add(HTTPStatus.INSUFFICIENT_STORAGE)
    return sorted(found)


def _problem(status: HTTPStatus) -> dict[str, Any]:
    headers: dict[str, Any] = dict(_REQUEST_ID_HEADER)
    if status in _RETRIED:
        headers["Retry-After"] = {
            "description": "Seconds to wait before a retry.",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }
    return {
        "description": _MEANINGS[status],
        "headers": headers,
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }


def _response_name(status: HTTPStatus) -> str:
    return f"{status.phrase.title().replace(' ', '').replace('-', '')}"


def _complete_parameter(parameter: dict[str, Any]) -> None:
    """Remove ``null`` from a parameter's types: an optional parameter is left out of the URL."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    for kind in kinds:
        schema.update(kind)
    for name in ("description", "title"):
        schema.pop(name, None)


def _without_titles(schema: dict[str, Any]) -> None:
    """Remove the titles by which pydantic repeats each field's name."""
    for field in schema.get("properties", {}).values():
        field.pop("title", None)


def _key_parameter(repeat: Repeat) -> dict[str, Any]:
    return {
        "name": KEY_HEADER,
        "in": "header",
        "required": False,
        "description": f"A unique text that the client chooses. A repeated request with the same key {repeat.value}; a "
        "different request with it is refused.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": KEY_PATTERN},
        "example": "d1f0c0de-7d1c-4a57-9a7c-0b1a2c3d4e5f",
    }


def _complete_body(entry: dict[str, Any], operation: Operation) -> None:
    if operation.body is Body.BATCH:
        batch = {"schema": {"type": "string", "format": "binary"}}
        entry["requestBody"] = {"required": True, "content": {Body.BATCH.value: batch}}
    if operation.body is Body.CSV:
        entry["requestBody"] = {
            "required": True,
            "content": {
                "text/csv": {
                    "schema": {"type": "string", "maxLength": 2 << 20},
                    "example": 'name,mac,serial,asset_tag,position\npc-07,52:54:00:12:34:56,,,"row 2, seat 5"\n',
                }
            },
        }
    elif operation.endpoint.__name__ in _AGENT_MESSAGES:
        asked, answered = _AGENT_MESSAGES[operation.endpoint.__name__]
        if asked is not None:
            entry["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": _schema(asked)}},
            }
        if answered is not None:
            content = {"application/json": {"schema": _schema(answered)}}
            entry["responses"][str(int(operation.status))]["content"] = content
    elif operation.endpoint.__name__ == "get_document":
        entry["responses"]["200"]["content"] = {"application/json": {"schema": {"type": "object"}}}


def _role(access: Access) -> str:
    return {
        Access.VIEW: "`view`",
        Access.METRICS: "`view`, or none with `metrics.public`",
        Access.OPERATE: "`operate`",
        Access.ENROL: "`enrol`",
        Access.BOOT: "`boot` or `operate`",
        Access.MACHINE: "none; the secret of the machine",
        Access.CAPTURE: "none; the secret of the capture",
        Access.OPEN: "none",
    }[access]


# -- schemas of records that protocol/ parses --------------------------------------------------------------------------


_RECORDS: Final = (
    (CAST_OUTCOME, "CastOutcome", "Result of a cast on one machine."),
    (CHECK_IN, "CheckIn", "Report of an agent about itself."),
    (HARDWARE, "ReportedHardware", "A machine's hardware, as its agent reports it."),
    (HARDWARE_DISK, "ReportedDisk", "A disk of a machine."),
    (DISK_HEALTH, "ReportedDiskHealth", "A disk's health by SMART."),
    (HARDWARE_CARD, "ReportedCard", "A network card of a machine, with or without a driver."),
    (HARDWARE_CONTROLLER, "ReportedController", "A disk controller of a machine."),
    (ASSIGNMENT, "Assignment", "The cast that a machine joins, and its control URL."),
    (
        CAPTURE_ASSIGNMENT,
        "CaptureAssignment",
        "The capture that a machine makes, with the secret of its upload.",
    ),
    (
        CHECK_IN_ANSWER,
        "CheckInAnswer",
        "The machine's id, and the cast that it joins or the capture that it makes.",
    ),
    (CAPTURE_START, "CaptureStart", "The disk that an agent captures."),
    (CAPTURE_POSITION, "CapturePosition", "The next block of an upload, and of its proof."),
    (SPAN_ANSWER, "SpanAnswer", "The blocks of a batch that the daemon doesn't have, as a bitmap."),
    (CAPTURE_END, "CaptureEnd", "The end of an upload."),
    (CAPTURE_RESULT, "CaptureResult", "The image of a capture."),
    (CAPTURE_FAILURE, "CaptureFailure", "The reason for which an agent can't make a capture."),
    (LIBRARY_IMAGE, "LibraryImage", "An image that a machine may request."),
    (LIBRARY_IMAGES, "LibraryImages", "The images that a machine may request, by name."),
    (IMAGE_CHOICE, "ImageChoice", "The image and the disk that a technician chose at a machine."),
    (REQUEST_STATUS, "RequestStatus", "A machine's request, as its own screen shows it."),
)

_AGENT_MESSAGES: Final[Mapping[str, tuple[JsonRecord[Any] | None, JsonRecord[Any] | None]]] = {
    "check_in": (CHECK_IN, CHECK_IN_ANSWER),
    "list_machine_images": (None, LIBRARY_IMAGES),
    "request_image": (IMAGE_CHOICE, REQUEST_STATUS),
    "get_image_request": (None, REQUEST_STATUS),
    "start_upload": (CAPTURE_START, CAPTURE_POSITION),
    "upload_spans": (None, SPAN_ANSWER),
    "prove_capture": (None, CAPTURE_POSITION),
    "commit_capture": (CAPTURE_END, CAPTURE_RESULT),
    "fail_capture": (CAPTURE_FAILURE, None),
}
"""Body and response of the operations of agents, by endpoint."""


def _agent_schemas() -> dict[str, Any]:
    schemas = {name: _table(record.fields, description) for record, name, description in _RECORDS}
    for record, name, _ in _RECORDS:
        if record in (CHECK_IN_ANSWER, REQUEST_STATUS):
            schemas[name]["required"] = list(record.fields)  # the daemon sends every field
    return schemas


def _table(fields: Mapping[str, JsonField], description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": {name: _schema(kind) for name, kind in fields.items()},
        "required": [name for name, kind in fields.items() if not isinstance(kind, Optional)],
    }


def _digits_pattern(kind: HexBytes | HexInteger | DecimalText) -> str:
    if isinstance(kind, DecimalText):
        return "^[0-9]{1,20}$"  # 64 bits
    digits_count = 8 if isinstance(kind, HexInteger) else 2 * kind.bytes_exact
    return f"^[0-9a-f]{{{digits_count}}}$"


def _schema(kind: JsonField) -> dict[str, Any]:
    """Return the JSON Schema of a field's kind; limits of texts are UTF-8 bytes there, characters here."""
    match kind:
        case Optional():
            return {"anyOf": [_schema(kind.kind), {"type": "null"}]}
        case JsonRecord():
            name = next(name for record, name, _ in _RECORDS if record is kind)
            return {"$ref": f"#/components/schemas/{name}"}
        case Integer():
            return {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        case Number():
            return {"type": "number", "minimum": 0, "maximum": kind.high}
        case Boolean():
            return {"type": "boolean"}
        case HardwareAddresses():
            return {
                "type": "array",
                "maxItems": kind.count_max,
                "items": {"type": "string", "pattern": "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"},
            }
        case Listed():
            return {"type": "array", "maxItems": kind.count_max, "items": _schema(kind.kind)}
        case InventoryField():
            return {
                "type": "object",
                "maxProperties": INVENTORY_ENTRIES_MAX,
                "propertyNames": _schema(PrintableText(INVENTORY_KEY_BYTES_MAX, bytes_min=1)),
                "additionalProperties": _schema(PrintableText(INVENTORY_VALUE_BYTES_MAX)),
            }
        case _:
            return {"type": "string", **_text_limits(kind)}


def _text_limits(kind: JsonField) -> dict[str, Any]:
    match kind:
        case HexData():
            return {"pattern": "^(?:[0-9a-f]{2})*$", "maxLength": 2 * kind.bytes_max}
        case HexBytes() | HexInteger() | DecimalText():
            return {"pattern": _digits_pattern(kind)}
        case ChoiceField():
            return {"enum": list(kind.choices)}
        case Address():
            return {"description": "An IP address."}
        case PrintableLines():
            return {"maxLength": kind.bytes_max}
        case PrintableText():
            return {"minLength": kind.bytes_min, "maxLength": kind.bytes_max, "pattern": "^[ -~]*$"}
        case _:
            raise AssertionError(f"unknown kind of field: {kind}")
