"""Captures: operators plan and cancel them, agents make them."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from protocol.control.capture_messages import (
    CAPTURE_END,
    CAPTURE_FAILURE,
    CAPTURE_POSITION,
    CAPTURE_RESULT,
    CAPTURE_START,
    PROOF_BATCH_BYTES_MAX,
    SPAN_ANSWER,
    SPAN_BATCH_BYTES_MAX,
)
from protocol.control.control_messages import parse_json_untrusted
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.guard.problems import ascii_json
from sender.api.request_models.captures import CaptureInput
from sender.api.request_models.field_types import IMAGE_ID_PATTERN, PLAIN_ID_PATTERN
from sender.api.routes.parameters import CaptureIdPath, MachineIdPath
from sender.daemon.context import Services
from sender.http.body import body_length_untrusted, read_body_untrusted
from sender.refusals import not_found
from sender.store.records.captures import Capture, CapturePlan

MachineFilter = Annotated[
    str | None, Query(pattern=PLAIN_ID_PATTERN, max_length=64, description="Only captures of this machine.")
]
ImageFilter = Annotated[
    str | None, Query(pattern=IMAGE_ID_PATTERN, max_length=80, description="Only the capture of this image.")
]


async def add_capture(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: CaptureInput
) -> Capture:
    """Plan a capture of a machine's disk: its agent makes it at its next check-in.

    A machine that boots over the network boots the live system for it. The image enters the library once the agent has
    read the disk a second time, and every block was the same.
    """
    machine = await services.store.run(services.store.machines.get, machine_id)
    if machine is None:
        raise not_found("machine", machine_id)
    plan = CapturePlan(machine_id=machine_id, **body.model_dump())
    return await services.captures.create(plan, machine, actor)


async def list_captures(
    services: ServicesOf,
    machine_id: MachineFilter = None,
    image_id: ImageFilter = None,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
) -> Page[Capture]:
    """List captures, newest first."""
    items, next_cursor = await services.store.run(
        services.store.captures.list, machine_id=machine_id, image_id=image_id, after=cursor, limit=limit
    )
    return Page(items=services.captures.current(items), next_cursor=next_cursor)


async def get_capture(services: ServicesOf, capture_id: CaptureIdPath) -> Capture:
    """Show a capture with its progress."""
    capture = await services.captures.find(capture_id)
    if capture is None:
        raise not_found("capture", capture_id)
    return capture


async def cancel_capture(services: ServicesOf, actor: ActorOf, capture_id: CaptureIdPath) -> Capture:
    """Cancel a capture, and remove what was uploaded."""
    return await services.captures.cancel(capture_id, actor)


async def start_upload(services: ServicesOf, request: Request, capture_id: CaptureIdPath) -> Response:
    """Start the upload of a capture, or continue it.

    The bearer of all requests of an upload is the secret of the capture, from the check-in. The response names the next
    block. While the daemon checks what it has, or other uploads run, the response is 503.
    """
    message = CAPTURE_START.decode_untrusted("start", parse_json_untrusted(await request.body()))
    return _json(CAPTURE_POSITION.encode(await services.captures.start(capture_id, message)))


async def upload_spans(services: ServicesOf, request: Request, capture_id: CaptureIdPath) -> Response:
    """Upload a batch: rows of the next blocks, and the stored bytes that the response before the last one named.

    The response names the blocks of this batch that the daemon doesn't have. Two batches may be on the way at once.
    """
    read_body = functools.partial(_read_batch, services, request, SPAN_BATCH_BYTES_MAX)
    return _json(SPAN_ANSWER.encode(await services.captures.take_spans(capture_id, read_body)))


async def prove_capture(services: ServicesOf, request: Request, capture_id: CaptureIdPath) -> Response:
    """Prove a batch of blocks by the hashes of a second read of the disk."""
    body = await _read_batch(services, request, PROOF_BATCH_BYTES_MAX)
    return _json(CAPTURE_POSITION.encode(await services.captures.take_proof(capture_id, body)))


async def commit_capture(services: ServicesOf, request: Request, capture_id: CaptureIdPath) -> Response:
    """Commit a proven capture: the image enters the library.

    A repeated request gets the same response.
    """
    message = CAPTURE_END.decode_untrusted("end", parse_json_untrusted(await request.body()))
    return _json(CAPTURE_RESULT.encode(await services.captures.commit(capture_id, message)))


async def fail_capture(services: ServicesOf, request: Request, capture_id: CaptureIdPath) -> Response:
    """Report the reason for which the agent can't make a capture."""
    message = CAPTURE_FAILURE.decode_untrusted("failure", parse_json_untrusted(await request.body()))
    await services.captures.fail(capture_id, message)
    return Response(status_code=204)


async def _read_batch(services: Services, request: Request, bytes_max: int) -> bytes:
    """Read a batch once it is its turn."""
    length = body_length_untrusted(request, bytes_max)
    async with services.upload_pace.turn(length):
        return await read_body_untrusted(request, bytes_max)


def _json(document: object) -> Response:
    return Response(ascii_json(document), media_type="application/json")
