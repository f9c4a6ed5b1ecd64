"""The control client against a real HTTP server that answers well, badly, late or not at all.

Lost if these fail: a broken or hostile server can crash, fill or hang an agent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from protocol.control.control_messages import CastDescription, cast_to_json, grant_to_json
from protocol.errors import (
    CertificateError,
    ConfigurationError,
    DiskcastError,
    JoinRefusedError,
    NoSenderError,
    ProtocolError,
    SessionError,
)
from protocol.model.cast_state import CastState
from protocol.model.session_records import (
    CastId,
    CastParameters,
    JoinGrant,
    JoinRequest,
    ReceiverId,
)
from protocol.program.peer_trust import PeerTrust
from protocol.receiving.manifest_reception import MemoryStore
from receiver.reception.network.control_client import ControlClient, retry_until
from receiver.reception.network.discovery import CastChoice, request_cast
from receiver.reception.network.http_client import ANSWER_BYTES_MAX, Unreachable
from receiver.reception.network.sender_access import SenderAccess
from tests.support.network.completion_reports import completion
from tests.support.network.lab import LIMIT_S
from tests.support.network.tls_peer import make_certificate, shared_certificate
from tests.support.wire import GRANT_SECRETS

CAST = CastDescription(
    cast_id=CastId(0xABCD),
    incarnation=1,
    state=CastState.CASTING,
    image_id=bytes(32),
    image_name="lab",
    raw_bytes=1 << 20,
    block_bytes=1 << 18,
    manifest_bytes=5000,
    symbol_bytes=1440,
    group="239.255.68.67",
    port=7410,
    sender_address="192.0.2.1",
    feedback_port=7411,
    control_url="https://192.0.2.1:7411",
    encrypted=False,
    receiver_count=0,
    statement="",
    signature="",
    signer="",
)
GRANT = JoinGrant(
    parameters=CastParameters(
        **{field.name: getattr(CAST, field.name) for field in dataclasses.fields(CastParameters)}
    ),
    receiver_id=ReceiverId(3),
    key=b"k" * 32,
    **GRANT_SECRETS,
    manifest_by_multicast=True,
    report_interval_s=0.1,
    grtt_s=0.01,
    receiver_count=1,
)
SECRET = "abcdefghijkl"
REQUEST = JoinRequest("agent", "pc1", {"host": "pc1"}, False, None, "")

Answer = tuple[int, bytes] | Callable[[BaseHTTPRequestHandler], None]


class Server:
    """An HTTP server that answers each path as the test sets it, and records the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                super().setup()
                server._connection_count += 1
                server._connections.append(self.connection)

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.command, self.path, dict(self.headers), body))
                answer = server.answers.get(
                    self.path, (404, b'{"title": "Not found", "detail": "no such cast"}')
                )
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            do_GET = do_POST = do_PUT = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing."""

        self._handler = Handler
        self._connections: list[socket.socket] = []
        self._connection_count = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        certificate = shared_certificate()
        self.trust = PeerTrust(pins=(certificate.pin,))
        self._tls = certificate.server_context()
        self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        url = f"https://127.0.0.1:{self._server.server_address[1]}/"
        self.client = ControlClient(url, SenderAccess(self.trust, SECRET))

    def use_certificate_of_its_own(self) -> None:
        """Show another certificate from now on."""
        with tempfile.TemporaryDirectory() as directory:
            self._tls.load_cert_chain(make_certificate(Path(directory)).certificate_file)

    def keep_alive(self) -> None:
        """Keep connections open after an answer."""
        self._handler.protocol_version = "HTTP/1.1"

    def close_connections(self) -> None:
        """Close the kept connections, as a server does whose patience is at its end."""
        while self._connections:
            with contextlib.suppress(OSError):
                self._connections.pop().shutdown(socket.SHUT_RDWR)

    @property
    def connection_count(self) -> int:
        """Return the number of connections so far."""
        return self._connection_count

    def close(self) -> None:
        self.close_connections()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.trio
async def test_casts_and_one_cast(server: Server) -> None:
    server.answers["/api/v1/casts"] = (200, as_json({"casts": [cast_to_json(CAST)]}))
    server.answers["/api/v1/casts/0000abcd"] = (200, as_json(cast_to_json(CAST)))
    assert await server.client.casts() == [CAST]
    assert await server.client.cast(CAST.cast_id) == CAST


@pytest.mark.trio
async def test_join_need_and_completion(server: Server) -> None:
    base = "/api/v1/casts/0000abcd/receivers"
    server.answers[base] = (201, as_json(grant_to_json(GRANT, state=CastState.CASTING)))
    server.answers[f"{base}/3/need"] = (204, b"")
    server.answers[f"{base}/3/completion"] = (204, b"")
    assert await server.client.join(CAST.cast_id, REQUEST) == GRANT
    await server.client.set_need(GRANT, np.ones(4, np.bool_), 77)
    await server.client.complete(GRANT, completion())
    methods = [request[0] for request in server.requests]
    assert methods == ["POST", "PUT", "POST"]
    assert server.requests[0][2]["Authorization"] == f"Bearer {SECRET}"
    assert server.requests[1][2]["Authorization"] == f"Bearer {GRANT.key.hex()}"
    assert json.loads(server.requests[1][3])["heard_sequence"] == 77
    assert json.loads(server.requests[2][3])["success"] is True


@pytest.mark.trio
async def test_the_manifest_is_read_into_place(server: Server) -> None:
    manifest = bytes(range(250)) * 20
    server.answers["/api/v1/casts/0000abcd/manifest"] = (200, manifest)
    store = MemoryStore(len(manifest))
    await server.client.manifest(CAST.cast_id, store)
    assert store.collected() == manifest


@pytest.mark.trio
@pytest.mark.parametrize("length", [4999, 5001])
async def test_a_manifest_of_another_length_is_refused(server: Server, length: int) -> None:
    server.answers["/api/v1/casts/0000abcd/manifest"] = (200, bytes(length))
    with pytest.raises(ProtocolError, match=f"{length} bytes, but announced 5000"):
        await server.client.manifest(CAST.cast_id, MemoryStore(5000))


@pytest.mark.trio
async def test_a_truncated_manifest_can_be_requested_again(server: Server) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(bytes(1000))
        handler.close_connection = True

    server.answers["/api/v1/casts/0000abcd/manifest"] = cut
    with pytest.raises(Unreachable, match="middle of the manifest"):
        await server.client.manifest(CAST.cast_id, MemoryStore(5000))


BLOCK_PATH = "/api/v1/casts/0000abcd/receivers/3/blocks/7"


@pytest.mark.trio
async def test_a_block_is_fetched_with_the_receivers_key(server: Server) -> None:
    server.answers[BLOCK_PATH] = (200, bytes(5000))
    assert await server.client.block(GRANT, 7, 5000) == bytes(5000)
    assert server.requests[0][2]["Authorization"] == f"Bearer {GRANT.key.hex()}"


@pytest.mark.trio
@pytest.mark.parametrize("length", [0, 4999, 5001, 1 << 20])
async def test_a_block_of_another_length_is_refused(server: Server, length: int) -> None:
    server.answers[BLOCK_PATH] = (200, bytes(length))
    with pytest.raises(ProtocolError, match=f"{length} bytes of block 7 instead of 5000"):
        await server.client.block(GRANT, 7, 5000)


@pytest.mark.trio
async def test_a_limited_fetch_can_be_repeated(server: Server) -> None:
    server.answers[BLOCK_PATH] = (429, as_json({"title": "Too Many Requests", "detail": "try again"}))
    with pytest.raises(Unreachable, match="try again"):
        await server.client.block(GRANT, 7, 5000)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NoSenderError),
        (409, JoinRefusedError),
        (401, JoinRefusedError),
        (400, SessionError),
        (301, SessionError),
        (503, Unreachable),
    ],
)
async def test_refusals_carry_the_senders_text(server: Server, status: int, error: type[Exception]) -> None:
    body = as_json({"title": "Refused", "detail": "the cast is full"})
    server.answers["/api/v1/casts/0000abcd/receivers"] = (status, body)
    with pytest.raises(error, match="the cast is full"):
        await server.client.join(CAST.cast_id, REQUEST)


@pytest.mark.trio
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b"[" * 100_000, b'{"casts": [{}]}', b"x" * (ANSWER_BYTES_MAX + 1)],
    ids=["empty", "null", "list", "truncated", "nested", "no cast", "huge"],
)
async def test_an_invalid_answer_is_refused(server: Server, body: bytes) -> None:
    server.answers["/api/v1/casts"] = (200, body)
    with pytest.raises(ProtocolError):
        await server.client.casts()


@pytest.mark.trio
async def test_a_server_of_another_protocol(server: Server) -> None:
    server.answers["/api/v1/casts"] = lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
    with pytest.raises(Unreachable, match="SSH"):
        await server.client.casts()


@pytest.mark.trio
async def test_a_server_that_does_not_answer(server: Server) -> None:
    server.client = ControlClient(server.client.url, SenderAccess(server.trust), timeout_s=0.05)
    done = threading.Event()
    server.answers["/api/v1/casts"] = lambda _handler: done.wait(LIMIT_S) and None
    try:
        with pytest.raises(Unreachable, match="timed out"):
            await server.client.casts()
    finally:
        done.set()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "192.0.2.1:7411",
        "ftp://192.0.2.1",
        "https://",
        "https://h:port",
        "https://h/x",
        "https://u@h",
        "https://[::1",
    ],
)
def test_an_invalid_sender_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        ControlClient(url, SenderAccess(PeerTrust(any_certificate=True)))


@pytest.mark.parametrize("url", ["http://192.0.2.1:7411", "http://127.0.0.1:7411"])
def test_a_join_secret_is_never_sent_in_clear(url: str) -> None:
    """An ANNOUNCE may name any URL; even a program on this machine mustn't get the secret."""
    with pytest.raises(ConfigurationError, match="isn't encrypted"):
        ControlClient(url, SenderAccess(PeerTrust(any_certificate=True), SECRET))


@pytest.mark.trio
async def test_another_programs_certificate_ends_the_exchange_before_it(server: Server) -> None:
    access = SenderAccess(PeerTrust(pins=("a" * 52,)), SECRET)
    with pytest.raises(CertificateError, match="a" * 52):
        await ControlClient(server.client.url, access).casts()
    assert not server.requests


@pytest.mark.trio
async def test_exchanges_share_a_connection_until_the_server_closes_it(server: Server) -> None:
    """A handshake for each check-in would cost a daemon with a thousand agents several percent of a core."""
    server.keep_alive()
    server.answers["/api/v1/casts"] = (200, as_json({"casts": [cast_to_json(CAST)]}))
    for _ in range(3):
        assert await server.client.casts() == [CAST]
    assert server.connection_count == 1
    server.close_connections()
    assert await server.client.casts() == [CAST]
    assert server.connection_count == 2


@pytest.mark.trio
async def test_a_renewed_bearer_is_used_for_the_next_exchange(server: Server) -> None:
    bearers = iter(["first", "second"])
    client = ControlClient(server.client.url, SenderAccess(server.trust, "old"), lambda: next(bearers))
    server.answers["/api/v1/casts"] = (200, as_json({"casts": []}))
    await client.casts()
    await client.casts()
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == [
        "Bearer first",
        "Bearer second",
    ]


@pytest.mark.trio
async def test_the_named_sender_is_queried(server: Server) -> None:
    ended = dataclasses.replace(CAST, cast_id=CastId(1), state=CastState.ENDED)
    server.answers["/api/v1/casts"] = (200, as_json({"casts": [cast_to_json(ended), cast_to_json(CAST)]}))
    offer = await request_cast(server.client, CastChoice(), wait_s=1.0)
    assert (offer.cast_id, offer.source) == (CAST.cast_id, None)
    with pytest.raises(NoSenderError, match=r"doesn't cast an image named 'office'.*0000abcd 'lab'"):
        await request_cast(server.client, CastChoice(image_name="office"), wait_s=1.0)


@pytest.mark.trio
async def test_retries_back_off_until_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    tried_at: list[float] = []

    async def fail() -> None:
        tried_at.append(trio.current_time())
        raise Unreachable("connection refused")

    with pytest.raises(NoSenderError, match=r"connection refused.*firewall"):
        await retry_until(10.0, fail)
    pauses = [after - before for before, after in itertools.pairwise(tried_at)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


@pytest.mark.trio
async def test_other_errors_are_not_retried(autojump_clock: trio.testing.MockClock) -> None:
    async def refuse() -> None:
        raise JoinRefusedError("full")

    with pytest.raises(DiskcastError, match="full"):
        await retry_until(10.0, refuse)
    assert autojump_clock.current_time() == 0.0
