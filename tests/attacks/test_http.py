"""Attacks on the HTTP of a sender and a daemon: whoever can reach the port must not be able to stop a room."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import resource
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.network.lab import LIMIT_S, Program
from tests.support.network.loopback_cast import LoopbackCast, pack
from tests.support.network.ports import free_port_range
from tests.support.programs.serving import Daemon

IDLE_COUNT = 2000
JOIN_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 5 << 20
IDLE_MEMORY_LIMIT_BYTES = 128 << 20
SMUGGLED_BYTES = 160 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    source = folder / "disk"
    source.write_bytes(b"\x01" * (4 << 20))
    return pack(source, folder / "lab.dci")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Target:
    """The HTTP server under attack."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.address = (parts.hostname, parts.port)
        self.tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self.tls = ssl.create_default_context()
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE

    def connect(self, *, source: str = "127.0.0.1", handshake: bool = True) -> socket.socket:
        plain = socket.create_connection(self.address, timeout=LIMIT_S, source_address=(source, 0))
        return self.tls.wrap_socket(plain) if self.tls and handshake else plain

    def ask(self, path: str) -> int:
        """Return the status of a request on a connection of its own."""
        if self.tls is None:
            client = http.client.HTTPConnection(*self.address, timeout=LIMIT_S)
        else:
            client = http.client.HTTPSConnection(*self.address, timeout=LIMIT_S, context=self.tls)
        with contextlib.closing(client):
            client.request("GET", path)
            return client.getresponse().status


def resident_bytes(program: Program) -> int:
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def smuggle(target: Target, path: str) -> bytes:
    """Send a short Content-Length and an endless chunked body; return the answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with target.connect() as peer:
        peer.sendall(head.encode() + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(SMUGGLED_BYTES // 0x10000):
                peer.sendall(chunk)
        with contextlib.suppress(OSError):
            return peer.recv(65536)
    return b""


def answer_to_smuggled_head(target: Target, path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with target.connect() as peer:
        peer.sendall(head.encode() + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n")
        return peer.recv(65536)


def assert_smuggling_refused(target: Target, path: str, program: Program) -> None:
    assert answer_to_smuggled_head(target, path).startswith(b"HTTP/1.1 400 ")
    before = resident_bytes(program)
    smuggle(target, path)
    assert resident_bytes(program) - before <= MEMORY_LIMIT_BYTES


def test_10_a_body_of_two_lengths_takes_no_memory_of_a_sender(image: Path) -> None:
    """Without this, anybody on the network fills the sender's memory and the cast of a whole room ends."""
    with LoopbackCast(image, "--wait-for", "1") as cast:
        target = Target(cast.url)
        cast_id = cast.sender.wait_event("cast_started", LIMIT_S)["cast_id"]
        assert_smuggling_refused(target, f"/api/v1/casts/{cast_id}/receivers", cast.sender)


def test_10_a_body_of_two_lengths_takes_no_memory_of_a_daemon(tmp_path: Path) -> None:
    """Without this, anybody on the network ends the daemon and all of its casts."""
    with Daemon(tmp_path / "daemon") as daemon:
        assert_smuggling_refused(Target(daemon.url), "/api/v1/session", daemon.program)


@pytest.mark.parametrize(
    ("address_count", "handshake"),
    [(1, False), (200, True)],
    ids=["one_address", "many_addresses_within_tls"],
)
@pytest.mark.usefixtures("many_descriptors")
def test_11_idle_connections_keep_no_machine_out_of_a_cast(
    image: Path, tmp_path: Path, address_count: int, handshake: bool
) -> None:
    """Without this, a script that only opens connections keeps a whole room from joining."""
    with LoopbackCast(image, "--wait-for", "1") as cast, contextlib.ExitStack() as stack:
        target = Target(cast.url)
        before = resident_bytes(cast.sender)
        _hold_idle_connections(target, stack, address_count, handshake=handshake)
        started_s = time.monotonic()
        assert target.ask("/api/v1/casts") in (200, 401)
        assert time.monotonic() - started_s < JOIN_LIMIT_S
        assert resident_bytes(cast.sender) - before < IDLE_MEMORY_LIMIT_BYTES
        agent = cast.receive(tmp_path / "target")
        assert agent.wait(LIMIT_S) == 0, agent.describe()


@pytest.mark.usefixtures("many_descriptors")
def test_11_idle_connections_keep_nobody_from_the_daemon(tmp_path: Path) -> None:
    """Without this, a script that only opens connections locks out agents and operators."""
    with Daemon(tmp_path / "daemon") as daemon, contextlib.ExitStack() as stack:
        target = Target(daemon.url)
        for _ in range(3):
            _hold_idle_connections(target, stack, 200, handshake=True)
        started_s = time.monotonic()
        assert target.ask("/healthz") == 200
        assert time.monotonic() - started_s < JOIN_LIMIT_S


def _hold_idle_connections(
    target: Target, stack: contextlib.ExitStack, address_count: int, *, handshake: bool
) -> None:
    for number in range(IDLE_COUNT):
        source = f"127.0.1.{1 + number % address_count}"
        stack.enter_context(target.connect(source=source, handshake=handshake))


class Observed:
    """A server on the loopback that redirects everything, and a count of the requests that arrive at it."""

    def __init__(self, location: str | None = None) -> None:
        observed = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                observed.requests += 1
                self.send_response(200 if location is None else 302)
                if location is not None:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "6")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(b"secret")

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.requests = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _refusal(daemon: Daemon, url: str) -> str:
    """Return the error for an image at ``url``, without the URL."""
    response = daemon.api.post("/images", json={"url": url})
    assert response.status_code == 422, response.text
    return str(response.json()["detail"]).replace(url, "URL")


def test_30_a_url_does_not_explore_the_daemons_network(tmp_path: Path) -> None:
    """Without this, a user who may add images reads services that only the daemon's machine can reach."""
    closed = free_port_range(1)[0]
    with Observed() as inner, Observed(f"{inner.url}/lab.dci") as outer:
        with Observed(f"http://127.0.0.1:{closed}/lab.dci") as nowhere:
            remotes = [f"{outer.url}/images/", f"{nowhere.url}/images/"]
            with Daemon(tmp_path / "daemon", settings={"library": {"remotes": remotes}}) as daemon:
                redirected = {_refusal(daemon, f"{server.url}/lab.dci") for server in (outer, nowhere)}
                direct = {
                    _refusal(daemon, f"{base}/lab.dci")
                    for base in (
                        inner.url,
                        f"http://127.0.0.1:{closed}",
                        "http://[::1]:1",
                        "http://10.255.0.1",
                    )
                }
        assert len(redirected) == 1, redirected
        assert len(direct) == 1, direct
        assert "secret" not in f"{redirected} {direct}"
        assert inner.requests == 0
        assert outer.requests > 0
