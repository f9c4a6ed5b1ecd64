"""Serve the control API of one cast: HTTPS on uvicorn in the sender's event loop.

:mod:`protocol.control.control_messages` parses the bodies and checks every field; errors are
``application/problem+json`` (RFC 9457). Connections, body bytes and time are bounded, so that clients can't exhaust
the sender.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from protocol.constants import (
    CONTROL_BODY_BYTES_MAX,
    NEED_BODY_BYTES_MAX,
    RECEIVER_COUNT_MAX,
    RECEIVER_KEY_BYTES,
)
from protocol.control.control_messages import (
    API_BASE,
    COMPLETION,
    MANIFEST_TYPE,
    PROBLEM_TYPE,
    JsonObject,
    cast_description,
    cast_to_json,
    grant_to_json,
    heard_sequence_from_json_untrusted,
    join_from_json_untrusted,
    need_from_json_untrusted,
    parse_json_untrusted,
    problem_to_json,
)
from protocol.errors import DiskcastError, JoinRefusedError, ProtocolError
from protocol.image.manifest import Manifest
from protocol.model.session_records import CastParameters, JoinRequest, ReceiverId
from protocol.schema.json_fields import HexBytes
from protocol.sending.sender_session import SenderSession
from protocol.trust.group_keys import GroupKeys
from sender.blocking_calls import start_blocking_call
from sender.cast.session.admission import Admission, AdmittedMachine
from sender.cast.session.locked_session import LockedSession
from sender.cast.session.machine_patches import MachinePatches, NoPatches
from sender.http.body import body_length_untrusted, read_body_untrusted
from sender.http.connections import admit, count_rejection
from sender.http.rejections import Api, Rejection
from sender.http.server import HttpServer, ServerLimits

_CONNECTIONS_MAX: Final = 2 * RECEIVER_COUNT_MAX
"""All receivers at once, even through one address, which gets half."""
_LARGE_BODIES_MAX: Final = 4
"""Most bodies above CONTROL_BODY_BYTES_MAX read at the same time; others wait in their connections' buffers."""
_MANIFEST_READS_MAX: Final = 2
"""Most threads that read the manifest of a large image, and hang if its disk does; late joiners take turns."""
_PATCH_READS_MAX: Final = 4
"""Most patches that are read at the same time: 64 MiB of memory if they are as large as they can be."""
MANIFEST_PIECE_BYTES: Final = 256 << 10
_KEEP_ALIVE_S: Final = 5
_SHUTDOWN_S: Final = 2
_KEY: Final = HexBytes(RECEIVER_KEY_BYTES)

MatchMachine = Callable[[JoinRequest], Awaitable[JoinRequest]]
"""Replaces the identity in a request to join by that of a known machine."""


async def no_matching(request: JoinRequest) -> JoinRequest:
    """Return the request unchanged: a sender without a daemon knows no machines."""
    return request


class ControlApi:
    """The endpoints of one running cast."""

    def __init__(
        self,
        locked_session: LockedSession,
        parameters: CastParameters,
        manifest: Manifest,
        admission: Admission,
        read_block: Callable[[GroupKeys, int], bytes],
        on_failure: Callable[[DiskcastError], None] = lambda _error: None,
        match_machine: MatchMachine = no_matching,
        patches: MachinePatches | None = None,
    ) -> None:
        """Prepare the endpoints.

        Args:
            locked_session: the session.
            parameters: the parameters of the cast.
            manifest: the manifest of the image.
            admission: the rule that admits machines.
            read_block: returns an image block as cast in the run of some keys; called in one thread at a time.
            on_failure: called in the event loop when the image can't be read any more, which ends the cast.
            match_machine: replaces the identity in a request to join by that of a known machine.
            patches: the machines' patches; None to cast the image alone.
        """
        self._patches = patches or NoPatches()
        self._patch_ids: dict[ReceiverId, bytes] = {}  # bounded as the roster is
        self._locked_session = locked_session
        self._match_machine = match_machine
        self._on_failure = on_failure
        self._parameters = parameters
        self._manifest = manifest
        self._admission = admission
        # base64 takes four characters for three octets; zlib adds a little to incompressible bits.
        bitmap_bytes = -(-manifest.block_count // 8) * 3 // 2
        self._need_body_bytes_max = min(NEED_BODY_BYTES_MAX, CONTROL_BODY_BYTES_MAX + bitmap_bytes)
        self._large_bodies = asyncio.Semaphore(_LARGE_BODIES_MAX)
        self._manifest_reads = asyncio.Semaphore(_MANIFEST_READS_MAX)
        self._patch_reads = asyncio.Semaphore(_PATCH_READS_MAX)
        self._read_block = read_block
        self._block_reads = asyncio.Lock()

    def application(self) -> FastAPI:
        """Return the ASGI application."""
        app = FastAPI(title="diskcast sender", openapi_url=None, docs_url=None, redoc_url=None)
        cast = f"{API_BASE}/casts/{{cast_id}}"
        # Dependencies run before an endpoint, and only endpoints read bodies.
        admitted, ours = [Depends(self._admit)], [Depends(self._check_cast)]
        app.get(f"{API_BASE}/casts", dependencies=admitted)(self.list_casts)
        app.get(cast, dependencies=admitted)(self.describe)
        app.get(f"{cast}/manifest", dependencies=admitted)(self.send_manifest)
        app.post(f"{cast}/receivers", dependencies=admitted, status_code=HTTPStatus.CREATED)(self.join)
        receiver = f"{cast}/receivers/{{receiver_id}}"
        app.put(f"{receiver}/need", dependencies=ours, status_code=HTTPStatus.NO_CONTENT)(self.set_need)
        app.get(f"{receiver}/blocks/{{block}}", dependencies=ours)(self.send_block)
        app.get(f"{receiver}/patch", dependencies=ours)(self.send_patch)
        app.get(f"{receiver}/patch-set", dependencies=ours)(self.send_patch_set)
        app.post(f"{receiver}/completion", dependencies=ours, status_code=HTTPStatus.NO_CONTENT)(
            self.complete
        )
        for error_class in (
            ProtocolError,
            JoinRefusedError,
            RequestValidationError,
            HTTPException,
            Exception,
        ):
            app.add_exception_handler(error_class, _answer_problem)
        return app

    # -- endpoints --------------------------------------------------------------------------------------------

    async def list_casts(self) -> JSONResponse:
        """List the casts of this sender: exactly one."""
        return JSONResponse({"casts": [self._description()]})

    async def describe(self) -> JSONResponse:
        """Describe the cast."""
        return JSONResponse(self._description())

    async def send_manifest(self) -> StreamingResponse:
        """Send the manifest in pieces, so that a slow client holds one piece in memory and not a copy of the whole."""
        data = self._manifest.data

        async def pieces() -> AsyncIterator[memoryview]:
            for start in range(0, len(data), MANIFEST_PIECE_BYTES):
                yield await self._manifest_piece(slice(start, start + MANIFEST_PIECE_BYTES))

        headers = {"Content-Length": str(len(data)), "ETag": f'"{self._parameters.image_id.hex()}"'}
        return StreamingResponse(pieces(), media_type=MANIFEST_TYPE, headers=headers)

    async def join(self, request: Request) -> JSONResponse:
        """Admit a receiver, as the machine that its bearer proves."""
        admitted: AdmittedMachine = request.state.admitted
        document = await self._document_untrusted(request, self._need_body_bytes_max)
        join_request = join_from_json_untrusted(
            document,
            block_count=self._manifest.block_count,
            address=request.client.host if request.client else "",
        )
        join_request = await self._match_machine(
            dataclasses.replace(join_request, machine_id=admitted.machine_id)
        )
        patch_id = await self._patches.find(join_request)
        with self._locked_session.update() as (session, now):
            grant = session.join(
                join_request, now, address_count_max=self._admission.receivers_per_address_max
            )
            state = session.state
        admit(request)
        self._patch_ids.pop(grant.receiver_id, None)
        if patch_id is not None:
            self._patch_ids[grant.receiver_id] = patch_id
        grant = dataclasses.replace(grant, patch_id=patch_id)
        return JSONResponse(grant_to_json(grant, state=state), status_code=HTTPStatus.CREATED)

    async def set_need(self, receiver_id: int, request: Request) -> Response:
        """Set the missing blocks of a receiver that has the manifest."""
        receiver, key = self._authorise_untrusted(receiver_id, request)
        document = await self._document_untrusted(request, self._need_body_bytes_max)
        need = need_from_json_untrusted(document, self._manifest.block_count)
        heard_sequence = heard_sequence_from_json_untrusted(document)
        with self._locked_session.update() as (session, now):
            _check_key(session, receiver, key)  # it may have joined again in the meantime
            session.set_need(receiver, need, now, heard_sequence)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def send_block(self, receiver_id: int, block: int, request: Request) -> Response:
        """Send a block as cast to a receiver that forged symbols keep from it, within its share of a cast's limit."""
        receiver, _key = self._authorise_untrusted(receiver_id, request)
        with self._locked_session.update() as (session, now):
            if not session.allow_fetch(receiver, block, now):
                raise HTTPException(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    "enough blocks are being fetched: try again",
                    {"Retry-After": "1"},
                )
            keys = session.keys
        async with self._block_reads:
            try:
                content = await start_blocking_call(functools.partial(self._read_block, keys, block), "block")
            except DiskcastError as error:
                self._on_failure(error)
                raise
        return Response(content, media_type=MANIFEST_TYPE)

    async def send_patch(self, receiver_id: int, request: Request) -> Response:
        """Send a receiver the patch of its machine; no other's, since a patch may hold secrets."""
        receiver, _key = self._authorise_untrusted(receiver_id, request)
        patch_id = self._patch_ids.get(receiver)
        if patch_id is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "this machine has no patch")
        async with self._patch_reads:
            content = await self._patches.read(patch_id)
        return Response(content, media_type=MANIFEST_TYPE)

    async def send_patch_set(self, receiver_id: int, request: Request) -> Response:
        """Send the signed set of the patches, which has ids and no contents; nothing if they aren't signed."""
        self._authorise_untrusted(receiver_id, request)
        return Response(await self._patches.signed_set(), media_type=MANIFEST_TYPE)

    async def complete(self, receiver_id: int, request: Request) -> Response:
        """Accept the completion report of a receiver."""
        receiver, key = self._authorise_untrusted(receiver_id, request)
        document = await self._document_untrusted(request, CONTROL_BODY_BYTES_MAX)
        report = COMPLETION.decode_untrusted("completion", document)
        with self._locked_session.update() as (session, now):
            _check_key(session, receiver, key)
            session.complete(receiver, report, now)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    # -- inside -----------------------------------------------------------------------------------------------

    async def _manifest_piece(self, part: slice) -> memoryview:
        """Return a part of the manifest; read it in a thread if it is on the image's disk."""
        data = self._manifest.data
        if isinstance(data, memoryview):
            return data[part]
        async with self._manifest_reads:
            try:
                return await start_blocking_call(lambda: data[part], "manifest")
            except DiskcastError as error:
                self._on_failure(error)
                raise  # the only way to abort a response that has started

    def _description(self) -> JsonObject:
        with self._locked_session.read() as (session, _now):
            description = cast_description(
                session.parameters, state=session.state, receiver_count=session.active_count
            )
        return cast_to_json(description)

    async def _admit(self, request: Request) -> None:
        """Refuse a request without the bearer of this cast, or for another cast."""
        address = request.client.host if request.client else ""
        admitted = self._admission.admit(_bearer(request), address)
        if admitted is None:
            count_rejection(request, Rejection.UNAUTHORISED)
            raise _unauthorised(
                "the bearer doesn't admit this machine: check the join code, or its enrolment"
            )
        if self._admission.proves_membership:
            admit(request)
        cast_id = request.path_params.get("cast_id")
        if cast_id is not None:
            await self._check_cast(cast_id)
        request.state.admitted = admitted

    async def _check_cast(self, cast_id: str) -> None:
        ours = f"{self._parameters.cast_id:08x}"
        if cast_id != ours:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"this sender has no cast {cast_id[:8]!r}; use {ours}")

    def _authorise_untrusted(self, receiver_id: int, request: Request) -> tuple[ReceiverId, bytes]:
        text = _bearer(request)
        if not text:
            raise _unauthorised("the receiver's key is missing: Authorization: Bearer KEY")
        receiver, key = ReceiverId(receiver_id), _KEY.decode_untrusted("key", text)
        with self._locked_session.read() as (session, _now):
            _check_key(session, receiver, key)
        admit(request)
        return receiver, key

    async def _document_untrusted(self, request: Request, bytes_max: int) -> object:
        """Return the parsed JSON body; a few large ones at a time, parsed in threads."""
        if "content-length" not in request.headers:
            raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "Content-Length is required")
        if body_length_untrusted(request, bytes_max) <= CONTROL_BODY_BYTES_MAX:
            return parse_json_untrusted(await read_body_untrusted(request, bytes_max))
        async with self._large_bodies:
            body = await read_body_untrusted(request, bytes_max)
            return await asyncio.to_thread(parse_json_untrusted, body)


class ControlServer(HttpServer):
    """The HTTPS server of one cast's control API."""

    def __init__(self, application: FastAPI, listener: socket.socket, *, tls: ssl.SSLContext) -> None:
        """Serve ``application`` over ``tls`` on ``listener``; the server closes it."""
        super().__init__(
            application,
            listener,
            tls=tls,
            limits=ServerLimits(
                Api.CAST, _CONNECTIONS_MAX, keep_alive_s=_KEEP_ALIVE_S, shutdown_s=_SHUTDOWN_S
            ),
        )


def _check_key(session: SenderSession, receiver_id: ReceiverId, key: bytes) -> None:
    try:
        session.check_key(receiver_id, key)
    except JoinRefusedError as error:
        raise _unauthorised(str(error)) from error


def _bearer(request: Request) -> str:
    """Return the secret of the ``Authorization`` header; empty without one."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _unauthorised(detail: str) -> HTTPException:
    # The connection ends: strangers have to pay a handshake for every request, and get few bytes for it.
    return HTTPException(
        HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer", "Connection": "close"}
    )


async def _answer_problem(_request: Request, error: Exception) -> JSONResponse:
    """Return an error as problem details of RFC 9457."""
    headers: Mapping[str, str] | None = None
    status, detail = HTTPStatus.INTERNAL_SERVER_ERROR, "internal error of the sender: see its output"
    match error:
        case HTTPException():
            status, detail, headers = HTTPStatus(error.status_code), error.detail, error.headers
        case JoinRefusedError():
            status, detail = HTTPStatus.CONFLICT, str(error)
        case ProtocolError():
            status, detail = HTTPStatus.BAD_REQUEST, str(error)
        case RequestValidationError():
            status, detail = HTTPStatus.BAD_REQUEST, "the path isn't part of this API"
    return JSONResponse(
        problem_to_json(status.phrase, detail), status_code=status, headers=headers, media_type=PROBLEM_TYPE
    )
