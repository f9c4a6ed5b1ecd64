"""The first contact with the daemon: if these fail, a wrong pin looks like a broken network."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from receiver.live.daemon_check import await_daemon
from receiver.live.messages import NO_DAEMON, NO_PIN, NO_SERVER, WRONG_PIN, BootStopError
from tests.support.network.ports import free_port_range
from tests.support.network.tls_peer import shared_certificate, tls_peer


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "ok"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


def _ignore(_step: str) -> None:
    pass


@pytest.fixture
def healthy_url() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_first_daemon_that_answers_is_enough(healthy_url: str) -> None:
    silent = f"http://127.0.0.1:{free_port_range(1).start}"
    assert await_daemon([silent, healthy_url], [], _ignore, wait_s=0) == healthy_url


def test_a_wrong_pin_is_named_at_once() -> None:
    with tls_peer(shared_certificate()) as peer, pytest.raises(BootStopError) as stop:
        await_daemon([peer.url], ["a" * 52], _ignore)
    assert WRONG_PIN.matches(str(stop.value))
    assert shared_certificate().pin in str(stop.value)


def test_a_daemon_that_doesnt_answer_is_named_with_its_address() -> None:
    url = f"https://127.0.0.1:{free_port_range(1).start}"
    with pytest.raises(BootStopError, match=f"no daemon at {url}") as stop:
        await_daemon([url], ["a" * 52], _ignore, wait_s=0)
    assert NO_DAEMON.matches(str(stop.value))


def test_another_program_with_the_right_certificate_isnt_a_daemon() -> None:
    certificate = shared_certificate()
    with tls_peer(certificate) as peer, pytest.raises(BootStopError, match="isn't a diskcast daemon"):
        await_daemon([peer.url], [certificate.pin], _ignore, wait_s=0)


def test_nothing_is_asked_without_a_server_or_a_pin() -> None:
    with pytest.raises(BootStopError) as stop:
        await_daemon([], ["a" * 52], _ignore)
    assert str(stop.value) == NO_SERVER.text()
    with pytest.raises(BootStopError) as stop:
        await_daemon(["https://127.0.0.1:1"], [], _ignore)
    assert str(stop.value) == NO_PIN.text()


def test_a_machine_says_for_what_it_waits() -> None:
    """The technician sees it at once, not after a minute."""
    steps: list[str] = []
    silent = f"http://127.0.0.1:{free_port_range(1).start}"
    with pytest.raises(BootStopError):
        await_daemon([silent], [], steps.append, wait_s=2.5)
    assert len(steps) == 1
    assert steps[0].startswith(f"waiting for the daemon: {silent}")
