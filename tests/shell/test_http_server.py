"""The HTTP server on real sockets: a client that holds connections, trickles or lies must cost nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from sender.http import protocol
from sender.http import server as http_server
from sender.http.body import read_body_untrusted
from sender.http.connections import admit
from sender.http.rejections import HTTP_REJECTIONS, Api, Rejection
from sender.http.server import HttpServer, ServerLimits
from tests.support.network.lab import LIMIT_S
from tests.support.network.tls_contexts import tls_contexts

SHORT_S = 0.2
LIMITS = ServerLimits(Api.CAST, connections_max=8, keep_alive_s=5, shutdown_s=1)


def make_application() -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.get("/")
    async def get() -> str:
        return "here"

    @app.post("/body")
    async def post(request: Request) -> int:
        return len(await read_body_untrusted(request, 1 << 20))

    @app.post("/ignored")
    async def ignore(request: Request) -> str:
        return "refused without reading"

    @app.get("/long")
    async def long(request: Request) -> Response:
        admit(request)
        await request.is_disconnected()
        await asyncio.sleep(LIMIT_S)
        return Response()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield bytes(65536)
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    return app


Test = Callable[[HttpServer, int], Awaitable[None]]


def with_server(test: Test, *, limits: ServerLimits = LIMITS, tls: ssl.SSLContext | None = None) -> None:
    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = HttpServer(make_application(), listener, tls=tls, limits=limits)
        async with asyncio.TaskGroup() as group, asyncio.timeout(LIMIT_S):
            group.create_task(server.run_until_stopped())
            try:
                await test(server, port)
            finally:
                server.stop()

    asyncio.run(run())


@contextlib.asynccontextmanager
async def connected(
    port: int, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(host, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, request: bytes) -> bytes:
    """Send bytes, and return everything until the server closes the connection."""
    async with connected(port) as (reader, writer):
        writer.write(request)
        return await closed(reader)


async def closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4", 400),
        (b"Transfer-Encoding: chunked", 411),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Content-Length: 4\r\nContent-Length: 5", 400),
        (b"Content-Length: +4", 400),
        (b"Content-Length: 99999999999999999", 413),
    ],
)
def test_a_body_without_one_clear_length_is_refused(headers: bytes, expected: int) -> None:
    async def test(server: HttpServer, port: int) -> None:
        answer = await ask(
            port, b"POST /body HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
        )
        assert status(answer) == expected, answer
        assert server.connections.rejections.counts[Rejection.BAD_REQUEST] == (expected != 413)

    with_server(test)


def test_a_body_of_known_length_arrives() -> None:
    async def test(_server: HttpServer, port: int) -> None:
        async with connected(port) as (reader, writer):
            for _ in range(2):
                writer.write(
                    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
                )
                assert status(await reader.readuntil(b"\r\n\r\n")) == 200
                assert await reader.readexactly(6) == b"100000"

    with_server(test)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", Rejection.HEAD_TIMEOUT),
        (b"GET / HT", Rejection.HEAD_TIMEOUT),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /", Rejection.HEAD_TIMEOUT),
    ],
)
def test_an_incomplete_head_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, reason: Rejection
) -> None:
    monkeypatch.setitem(protocol._DEADLINES, protocol._Phase.HEAD, (SHORT_S, Rejection.HEAD_TIMEOUT))
    monkeypatch.setattr(http_server, "_FIRST_BYTE_S", SHORT_S)

    async def test(server: HttpServer, port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(sent)
            await closed(reader)
        assert server.connections.rejections.counts[reason] == 1

    with_server(test)


def test_a_trickling_head_does_not_move_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocol._DEADLINES, protocol._Phase.HEAD, (SHORT_S, Rejection.HEAD_TIMEOUT))

    async def test(server: HttpServer, port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n")
            end = asyncio.ensure_future(closed(reader))
            while not end.done():
                writer.write(b"X: y\r\n")
                await asyncio.wait([end], timeout=SHORT_S / 10)
        assert server.connections.rejections.counts[Rejection.HEAD_TIMEOUT] == 1

    with_server(test)


def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    """Otherwise a refused client could send for ever."""

    async def test(server: HttpServer, port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(b"POST /ignored HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
            assert b"refused without reading" in await reader.readuntil(b'reading"')
            end = asyncio.ensure_future(closed(reader))
            with contextlib.suppress(OSError):
                while not end.done():
                    writer.write(bytes(65536))
                    await writer.drain()
            await end
        assert len(server.connections) == 0

    with_server(test)


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_READER_STALLED_S", SHORT_S)

    async def test(server: HttpServer, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            while not server.connections.rejections.counts[Rejection.READER_STALLED]:
                await asyncio.sleep(SHORT_S / 10)

    with_server(test)


def test_idle_strangers_make_room_and_members_stay() -> None:
    async def test(server: HttpServer, port: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            member, writer = await stack.enter_async_context(connected(port, host="127.0.0.2"))
            writer.write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
            for host in range(3, 40):
                await stack.enter_async_context(connected(port, host=f"127.0.0.{host}"))
            answer = await ask(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"here" in answer
            assert len(server.connections) <= 8
            assert server.connections.rejections.counts[Rejection.EVICTED] >= 30
            assert not member.at_eof()

    with_server(test)


def test_strangers_in_a_handshake_make_room() -> None:
    server_tls, client_tls = tls_contexts()

    async def test(server: HttpServer, port: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for host in range(3, 40):
                await stack.enter_async_context(connected(port, host=f"127.0.0.{host}"))
            reader, writer = await stack.enter_async_context(connected(port, tls=client_tls))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"here" in await closed(reader)
            assert len(server.connections) <= 8
            assert server.connections.rejections.counts[Rejection.EVICTED] >= 30

    with_server(test, tls=server_tls)


def test_a_failed_handshake_is_counted_and_leaves_nothing() -> None:
    server_tls, _client_tls = tls_contexts()

    async def test(server: HttpServer, port: int) -> None:
        await ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server.connections.rejections.counts[Rejection.HANDSHAKE] == 1
        assert len(server.connections) == 0

    with_server(test, tls=server_tls)


def test_rejections_are_metrics_with_bounded_labels() -> None:
    """An operator sees an attack only if it is counted, and Prometheus survives it only if labels are bounded."""

    def value() -> float:
        [family] = HTTP_REJECTIONS.collect()
        assert len(family.samples) == len(Api) * len(Rejection)
        return next(
            sample.value
            for sample in family.samples
            if sample.labels == {"api": "cast", "reason": Rejection.BAD_REQUEST}
        )

    async def test(_server: HttpServer, port: int) -> None:
        before = value()
        await ask(port, b"NONSENSE\r\n\r\n")
        assert value() == before + 1

    with_server(test)
