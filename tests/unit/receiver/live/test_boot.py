"""The last step of a start: if these fail, a machine that the daemon refuses waits forever, without a reason."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from protocol.control.boot_parameters import AfterCast, BootParameters
from receiver.live.agent_options import agent_options
from receiver.live.boot import AGENT_STARTED, LiveContext, main, serve
from receiver.live.console_status import ConsoleReporter
from receiver.live.messages import AGENT_FAILED, NO_TOKEN, NOT_ADMITTED, BootStopError
from receiver.live.network_setup import Lease
from receiver.live.status_model import StatusModel
from tests.unit.receiver.reception.reporting.test_progress import PARAMETERS, RECEPTION

TOKEN = "dcb_" + "a" * 40
CARD = next((name for name in psutil.net_if_addrs() if name != "lo"), "lo")
LEASE = Lease(CARD, "192.0.2.7/24", "192.0.2.1", "pc07", "52:54:00:99:00:01")


class Refusing(http.server.ThreadingHTTPServer):
    """A daemon that refuses every check-in.

    Attributes:
        bearers: ``Authorization`` headers that it got.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RefusingHandler)
        self.bearers: list[str] = []


class _RefusingHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Refusing)
        self.server.bearers.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"title": "Unauthorized", "detail": "this boot token was used already"}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    server = Refusing()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Lines(ConsoleReporter):
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(StatusModel(version="1.0"))
        self.lines: list[str] = []

    def write_line(self, text: str) -> None:
        self.lines.append(text)


def context(server: Refusing, reporter: Lines, **changes: object) -> LiveContext:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    settings: dict[str, object] = {"servers": (url,), "boot_token": TOKEN, "after": AfterCast.WAIT} | changes
    return LiveContext(BootParameters(**settings), LEASE, "pc07", reporter)  # type: ignore[arg-type]


def test_a_used_boot_token_ends_the_agent_with_the_daemons_reason(refusing: Refusing) -> None:
    reporter = Lines()
    with pytest.raises(BootStopError, match="this boot token was used already") as stop:
        serve(context(refusing, reporter))
    assert NOT_ADMITTED.matches(str(stop.value))
    assert AGENT_STARTED in reporter.lines
    assert refusing.bearers == [f"Bearer {TOKEN}"]
    assert "tokens create" not in str(stop.value), "nobody at the machine can pass another token"
    assert TOKEN not in str(stop.value)
    assert not any(TOKEN in line for line in reporter.lines)


def test_a_machine_without_a_token_says_so_instead_of_naming_options_of_the_agent(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("receiver.live.boot.TOKEN_FILE", tmp_path / "missing")
    with pytest.raises(BootStopError) as stop:
        serve(context(refusing, Lines(), boot_token=""))
    assert str(stop.value) == NO_TOKEN.text()


def test_an_agent_that_couldnt_restart_the_machine_doesnt_start(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is known before an hour of casting, not after it."""
    status = tmp_path / "status"
    status.write_text("CapEff:\t0000000000000000\n")
    monkeypatch.setattr("receiver.service.restart.PROCESS_STATUS", status)
    monkeypatch.setattr("receiver.service.restart.SYSTEMD_MARK", tmp_path / "missing")
    with pytest.raises(BootStopError, match="CAP_SYS_BOOT") as stop:
        serve(context(refusing, Lines(), after=AfterCast.REBOOT))
    assert AGENT_FAILED.matches(str(stop.value))
    assert refusing.bearers == []


def test_the_agent_gets_the_settings_of_the_boot() -> None:
    parameters = BootParameters(
        servers=("https://10.0.0.1:7400",),
        pins=("a" * 52,),
        target="auto:smallest",
        after=AfterCast.REBOOT,
        version_min=7,
        tags=frozenset({"lab"}),
        grow=True,
        efi_label="lab",
    )
    options = agent_options(parameters, LEASE, "pc07", TOKEN)
    assert (options.machine.interface, options.machine.name, options.target) == (
        CARD,
        "pc07",
        "auto:smallest",
    )
    assert (options.servers, options.certificates.pins) == (parameters.servers, parameters.pins)
    assert (options.trust.version_min, options.trust.tags) == (7, {"lab"})
    fit = options.target_options.fit
    assert (fit.grow, fit.efi_label, fit.boot_next, options.after) == (True, "lab", True, AfterCast.REBOOT)
    assert TOKEN not in repr(options)


# -- the last line before a restart ---------------------------------------------------------------------------------


def stop_of(monkeypatch: pytest.MonkeyPatch, live: LiveContext) -> list[str]:
    """Return the lines of a live system whose agent stops."""
    reporter = live.reporter
    assert isinstance(reporter, Lines)
    monkeypatch.setattr("receiver.live.boot.open_reporter", lambda _version: reporter)
    monkeypatch.setattr("receiver.live.boot.start", lambda _reporter: serve(live))
    monkeypatch.setattr("receiver.live.boot.RESTART_AFTER_S", 0.0)
    monkeypatch.setattr("receiver.live.boot.restart_now", lambda _action: None)
    assert main() == 0
    return reporter.lines


def test_a_refused_machine_says_that_nothing_was_written(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A technician must know whether the old system still starts."""
    lines = stop_of(monkeypatch, context(refusing, Lines()))
    assert NOT_ADMITTED.matches(lines[-2])
    assert lines[-1] == "nothing was written; restart in 0 s"


def test_a_machine_that_had_joined_a_cast_says_that_a_disk_may_be_incomplete(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Lines()
    reporter.observer().joined(PARAMETERS, rejoined=False)
    lines = stop_of(monkeypatch, context(refusing, reporter))
    assert lines[-1] == "a disk may be incomplete; restart in 0 s"


def test_a_machine_that_couldnt_restart_after_its_cast_says_that_the_image_is_on_the_disk(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Lines()
    reporter.observer().joined(PARAMETERS, rejoined=False)
    reporter.succeeded(RECEPTION)
    lines = stop_of(monkeypatch, context(refusing, reporter))
    assert lines[-1] == "the image is on the disk; restart in 0 s"
