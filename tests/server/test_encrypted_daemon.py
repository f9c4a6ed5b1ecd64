"""A daemon that other machines can reach: its agents and its operator's commands recognise it, and nobody can listen.

Lost if these fail: tokens cross the network in clear, or a false daemon gets them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CertificateError, ConfigurationError
from protocol.program.options import PIN_VARIABLE
from tests.server.conftest import GoldenImage
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until

OTHER_PIN = "a" * 52


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "daemon", encrypted=True) as started:
        yield started


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., ServiceAgent]]:
    """Return a function that starts an agent with pins and a token for enrolment."""
    with contextlib.ExitStack() as stack:

        def start(daemon: Daemon, *pins: str) -> ServiceAgent:
            made = daemon.ask("POST", "/tokens", {"name": "room", "role": "enrol"})
            token = tmp_path / "token"
            token.write_text(made["secret"])
            token.chmod(0o600)
            options = [word for pin in pins for word in ("--pin", pin)]
            options += ["--token-file", str(token)]
            return stack.enter_context(ServiceAgent(tmp_path / "disks", "pc01", [daemon], options=options))

        yield start


def command(daemon: Daemon, *arguments: str, pin: str = "") -> tuple[int, dict[str, Any], str]:
    """Run a command of an operator; return its exit code, result and error output."""
    environment = {"DISKCAST_TOKEN_FILE": str(daemon.token_file), **({PIN_VARIABLE: pin} if pin else {})}
    argv = diskcast("rooms", "list", "--json", "--server", daemon.url, *arguments)
    with Program(argv, environment=environment) as program:
        code = program.wait(LIMIT_S)
        return code, program.result, program.stderr_text()


def test_a_room_is_imaged_over_tls(
    daemon: Daemon, agent: Callable[..., ServiceAgent], image: GoldenImage
) -> None:
    daemon.add_image(image.path)
    assert daemon.server()["pin"] == daemon.pin
    started = agent(daemon, OTHER_PIN, daemon.pin)
    machine = wait_online(daemon, ["pc01"])["pc01"]
    cast_id = daemon.create_cast(image.image_id, machine_ids=[machine])
    daemon.wait_phase(cast_id, "done")
    image.assert_is_on(started.target)


def test_operators_recognise_the_daemon_by_pin_or_ca(daemon: Daemon) -> None:
    assert command(daemon, "--pin", daemon.pin)[0] == 0
    assert command(daemon, pin=daemon.pin[:20])[0] == 0
    certificate = daemon.state_directory / "certificate.pem"
    assert command(daemon, "--ca", str(certificate))[0] == 0
    for arguments in (("--pin", OTHER_PIN), ()):
        code, result, _ = command(daemon, *arguments)
        assert code == CertificateError.exit_code
        assert "--pin" in result["error"] or daemon.pin in result["error"]


def test_nothing_is_sent_or_answered_in_clear(daemon: Daemon) -> None:
    plain = daemon.url.replace("https:", "http:")
    code, result, _ = command(daemon, "--server", plain.replace("127.0.0.1", "192.0.2.1"))
    assert code == ConfigurationError.exit_code
    assert "isn't encrypted" in result["error"]
    port = urllib.parse.urlsplit(plain).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    encrypted = http.client.HTTPSConnection("127.0.0.1", port, timeout=LIMIT_S, context=old)
    with contextlib.closing(encrypted), pytest.raises(ssl.SSLError):
        encrypted.request("GET", "/healthz")


def test_a_certificate_rotates_with_overlap(daemon: Daemon, agent: Callable[..., ServiceAgent]) -> None:
    """The agents learn the next pin before the daemon uses it, and no machine has to be visited afterwards."""

    def certificate(*arguments: str) -> dict[str, Any]:
        argv = diskcast("certificate", *arguments, "--server", "--config", daemon.config_path, "--json")
        with Program(argv) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
            return dict(program.result)

    assert certificate("show")["next_pin"] is None
    prepared = certificate("rotate", "--prepare")
    assert prepared["pin"] == daemon.pin != prepared["next_pin"]
    assert certificate("show")["next_pin"] == prepared["next_pin"]
    agent(daemon, prepared["pin"], prepared["next_pin"])
    wait_online(daemon, ["pc01"])
    assert certificate("rotate")["pin"] == prepared["next_pin"]
    daemon.stop()
    daemon.start()
    assert daemon.server()["pin"] == prepared["next_pin"]
    wait_online(daemon, ["pc01"])


def test_the_ready_line_tells_the_pin(daemon: Daemon) -> None:
    def logged() -> dict[str, Any] | None:
        lines = [line for line in daemon.program.stderr_text().splitlines() if "daemon_ready" in line]
        return json.loads(lines[0].partition("{")[1] + lines[0].partition("{")[2]) if lines else None

    ready = wait_until("the log has the ready line", logged, describe=daemon.describe)
    assert ready is not None
    assert ready["pin"] == daemon.pin
    assert ready["url"].startswith("https://")
