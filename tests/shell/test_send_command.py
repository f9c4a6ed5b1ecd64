"""``diskcast send`` as an operator's script sees it: events, exit codes and the notification of the room.

The tests act as receivers over the real control API and the real group on lo; no privileges are needed.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.control import control_messages as messages
from protocol.errors import ImageChangedError, WireError
from protocol.model.cast_state import SessionOutcome
from protocol.model.session_records import CompletionReport, JoinGrant, JoinRequest
from protocol.program.pinned_tls import pinned_context
from protocol.trust.join_code import JoinCode
from protocol.wire.control_codec import decode_control_untrusted
from protocol.wire.messages import EndOfTransmission
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import open_data_socket
from sender.metrics.metric import CAST_LABELS
from tests.shell.loopback import roomy
from tests.support.disks.disk_images import make_image
from tests.support.network.completion_reports import completion
from tests.support.network.lab import LIMIT_S, LabError, Program, diskcast
from tests.support.network.ports import free_port_range
from tests.support.wire import announcement, forged

GROUP = parse_group("239.255.68.97")


class Room:
    """A multicast group on lo for one test: its port, and a listener in it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        roomy(self._socket)
        [self.port] = free_port_range(1)
        self._socket.bind((str(GROUP), self.port))
        membership = struct.pack("@4s4si", GROUP.packed, bytes(4), find_interface("lo").index)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self._socket.settimeout(LIMIT_S)

    def close(self) -> None:
        self._socket.close()

    def end_of_transmission(self) -> EndOfTransmission:
        """Return the first EOT received."""
        while True:
            try:
                _prefix, message = decode_control_untrusted(self._socket.recv(65536))
            except WireError:  # a SYMBOL
                continue
            if isinstance(message, EndOfTransmission):
                return message

    def announce(self, cast_id: int, *, incarnation: int, control_url: str) -> None:
        """Send an ANNOUNCE of another sender of the cast."""
        message = announcement(incarnation=incarnation, control_url=control_url)
        lo = find_interface("lo")
        with open_data_socket(lo, lo.address_for(GROUP), GROUP, self.port, ttl=1) as sock:
            sock.send(forged(message, cast_id=cast_id))

    def is_silent(self) -> bool:
        """Return True if nothing was received."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._socket.recv(65536)
            return False
        return True


@pytest.fixture
def room() -> Iterator[Room]:
    with contextlib.closing(Room()) as opened:
        yield opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image("rdrzur").write(tmp_path / "image.dci")


@contextlib.contextmanager
def sending(room: Room, image: Path, *options: str) -> Iterator[Program]:
    addresses = ("--interface", "lo", "--group", str(GROUP), "--port", str(room.port))
    usual = {"--control": ":0", "--receiver-timeout": str(LIMIT_S)}
    defaults = [word for name, value in usual.items() if name not in options for word in (name, value)]
    with contextlib.closing(
        Program(diskcast("send", image, *addresses, *defaults, "--json", *options))
    ) as program:
        yield program


def result_of(program: Program, exit_code: int) -> dict[str, Any]:
    """Return the last line after the program exited with ``exit_code``."""
    assert program.wait(LIMIT_S) == exit_code, program.describe()
    result = program.events[-1]
    assert result["event"] == "result"
    assert result["exit_code"] == exit_code
    assert result["ok"] is (exit_code == 0)
    return result


class PlayedReceiver:
    """A receiver that joins over HTTP and sends the messages of a test."""

    def __init__(self, program: Program, name: str) -> None:
        started = program.wait_event("cast_started", LIMIT_S)
        self._url = f"{started['control_url']}/api/v1/casts/{started['cast_id']}/receivers"
        request = JoinRequest(f"agent-{name}", name, {}, True, None, "")
        code = JoinCode.parse(started["join_code"])
        self._tls = pinned_context([code.pin_prefix])
        response = httpx.post(
            self._url,
            json=messages.join_to_json(request),
            headers={"Authorization": f"Bearer {code.secret}"},
            verify=self._tls,
            timeout=LIMIT_S,
        )
        response.raise_for_status()
        self.grant: JoinGrant = messages.grant_from_json_untrusted(response.json())

    def report(self, report: CompletionReport) -> None:
        response = httpx.post(
            f"{self._url}/{self.grant.receiver_id}/completion",
            json=messages.COMPLETION.encode(report),
            headers={"Authorization": f"Bearer {self.grant.key.hex()}"},
            verify=self._tls,
            timeout=LIMIT_S,
        )
        assert response.status_code == 204, response.text


def test_a_complete_room_is_success_and_every_receiver_is_in_the_summary(room: Room, image: Path) -> None:
    with sending(room, image, "--wait-for", "2") as program:
        first, second = PlayedReceiver(program, "pc-1"), PlayedReceiver(program, "pc-2")
        program.wait_event("casting_started", LIMIT_S)
        first.report(completion())
        second.report(completion())
        assert room.end_of_transmission().outcome == SessionOutcome.COMPLETE
        result = result_of(program, 0)
    assert [receiver["name"] for receiver in result["receivers"]] == ["pc-1", "pc-2"]
    assert all(receiver["state"] == "complete" for receiver in result["receivers"])
    assert result["receivers"][0]["loss"] == pytest.approx(0.1)
    assert result["receivers"][0]["bytes_verified"] == 1000
    joined = [event["receiver"] for event in program.events if event["event"] == "receiver_joined"]
    assert joined == ["pc-1", "pc-2"]
    assert program.stderr_text() == ""


def test_a_failed_receiver_fails_the_cast_and_is_named_with_its_error(room: Room, image: Path) -> None:
    with sending(room, image, "--wait-for", "2") as program:
        first, second = PlayedReceiver(program, "pc-1"), PlayedReceiver(program, "pc-2")
        program.wait_event("casting_started", LIMIT_S)
        first.report(completion())
        second.report(completion(success=False, error="/dev/sda: no space"))
        result = result_of(program, 60)
    assert result["error_class"] == "ReceiversIncompleteError"
    assert "pc-2: /dev/sda: no space" in result["error"]
    assert [receiver["state"] for receiver in result["receivers"]] == ["complete", "failed"]


def test_a_silent_receiver_is_lost_and_does_not_delay_the_room(room: Room, image: Path) -> None:
    with sending(room, image, "--receiver-timeout", "0.5") as program:
        PlayedReceiver(program, "pc-1")
        program.wait_event("receiver_lost", LIMIT_S)
        result = result_of(program, 60)
    assert "pc-1: silent" in result["error"]


def test_too_few_receivers_by_the_deadline_start_and_set_the_exit_code(room: Room, image: Path) -> None:
    error = ""
    for max_wait in ("1.5", "15", "150"):
        with sending(room, image, "--wait-for", "2", "--max-wait", max_wait) as program:
            try:
                only = PlayedReceiver(program, "pc-1")
            except (
                LabError,
                httpx.HTTPError,
            ):  # on a busy machine no receiver could join before the deadline
                continue
            program.wait_event("casting_started", LIMIT_S)
            only.report(completion())
            error = result_of(program, 61)["error"]
            break
    assert "only 1 of 2" in error


def test_a_cast_without_receivers_ends_at_the_deadline(room: Room, image: Path) -> None:
    with sending(room, image, "--max-wait", "0.2") as program:
        result = result_of(program, 61)
    assert "no receiver joined" in result["error"]
    assert result["bytes_sent"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_cast_and_notifies_the_room(
    room: Room, image: Path, number: signal.Signals
) -> None:
    with sending(room, image, "--rate", "1M") as program:
        PlayedReceiver(program, "pc-1")
        program.wait_event("casting_started", LIMIT_S)
        program.signal(number)
        assert room.end_of_transmission().outcome == SessionOutcome.CANCELLED
        result = result_of(program, 130)
    assert result["receivers"][0]["state"] == "receiving"


def test_a_second_signal_does_not_wait_and_still_notifies_the_room(room: Room, image: Path) -> None:
    with sending(room, image) as program:
        PlayedReceiver(program, "pc-1")
        program.signal(signal.SIGINT)
        program.wait_event("cast_ended", LIMIT_S)
        program.signal(signal.SIGINT)
        result_of(program, 130)
    assert [room.end_of_transmission().outcome for _ in range(5)] == [SessionOutcome.CANCELLED] * 5


def test_an_image_altered_during_the_cast_ends_it_with_an_error_that_names_the_block(
    room: Room, image: Path
) -> None:
    made = make_image("rdrzur")
    with sending(room, image) as program:
        program.wait_event("cast_started", LIMIT_S)
        with image.open("r+b") as file:
            file.seek(made.stored_offset(2))
            file.write(b"damaged")
        PlayedReceiver(program, "pc-1")
        heard = room.end_of_transmission()
        result = result_of(program, ImageChangedError.exit_code)
    assert heard.outcome == SessionOutcome.FAILED
    assert "block 2" in heard.reason
    assert result["error_class"] == "ImageChangedError"
    assert result["receivers"][0]["name"] == "pc-1"


def test_a_port_in_use_is_an_error_before_anything_is_sent_to_the_group(room: Room, image: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with sending(room, image, "--control", f":{port}") as program:
            result = result_of(program, 12)
    assert f"TCP port {port}" in result["error"]
    assert room.is_silent()


def test_a_second_sender_of_a_cast_stops_and_the_first_continues(room: Room, image: Path) -> None:
    with sending(room, image) as first:
        first.wait_event("progress", LIMIT_S, lambda _event: len(first.events) > 5)
        with sending(room, image) as second:
            assert "already being cast" in result_of(second, 12)["error"]
        assert first.exit_code is None, first.describe()


@pytest.mark.parametrize("own_url", [False, True], ids=["elsewhere", "at the sender itself"])
def test_a_forged_announcement_does_not_end_a_cast(room: Room, image: Path, own_url: bool) -> None:
    """Attack 15: anybody on the network can announce the cast under another incarnation."""
    with sending(room, image) as program:
        started = program.wait_event("cast_started", LIMIT_S)
        control_url = started["control_url"] if own_url else "https://127.0.0.1:1"
        room.announce(
            int(started["cast_id"], 16), incarnation=started["incarnation"] ^ 1, control_url=control_url
        )
        note = program.wait_event("note", LIMIT_S)
        assert "without being its sender" in note["text"]
        PlayedReceiver(program, "pc-1").report(completion())
        result_of(program, 0)


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (("--group", "10.0.0.1"), 10, "isn't a multicast address"),
        (("--interface", "eth99"), 11, "there is no network interface 'eth99'"),
        (("--symbol-size", "64"), 10, "--block-size"),
        (("--symbol-size", "9000"), 10, "from 64 to 8928"),
        (("--rate", "10k"), 10, "out of range"),
        (("--rate", "800M", "--max-rate", "900M"), 10, "remove one of them"),
        (("--rate", "800M", "--share"), 10, "remove one of them"),
        (("--slow-below", "95%"), 10, "from 1% to 90%"),
        (("--slow-below", "thirty"), 10, "write for example 30%"),
        (("--slow-for", "0.1s"), 10, "from 0.5 s to 1:00:00"),
        (("--slow-for", "2 days"), 10, "write for example 10s"),
        (("--cast-id", "xyz"), 10, "eight hexadecimal digits"),
        (("--control", "elsewhere:1"), 10, "HOST:PORT"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_fix(
    room: Room, image: Path, options: tuple[str, ...], exit_code: int, words: str
) -> None:
    with sending(room, image, *options) as program:
        result = result_of(program, exit_code)
    assert words in result["error"]
    assert room.is_silent()


def test_metrics_show_the_running_cast_and_its_receivers(room: Room, image: Path) -> None:
    with sending(
        room, image, "--metrics-port", "0", "--metrics-address", "127.0.0.1", "--wait-for", "2"
    ) as program:
        port = program.wait_event("cast_started", LIMIT_S)["metrics_port"]
        receiver = PlayedReceiver(program, "pc-1")
        receiver.report(completion())
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            text = response.read().decode()
        program.signal(signal.SIGINT)
        result_of(program, 130)
    samples = {
        (
            sample.name,
            *sorted(item for item in sample.labels.items() if item[0] not in CAST_LABELS),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["diskcast_receivers", ("state", "complete")] == 1
    assert samples["diskcast_receiver_progress_ratio", ("machine", "pc-1")] == 1
    assert samples["diskcast_cast_state", ("state", "gathering")] == 1
    assert samples["diskcast_receiver_completion_seconds_count",] == 1
    assert samples["diskcast_receiver_completion_seconds_bucket", ("le", "10.0")] == 1
    assert samples["diskcast_joins_total",] == 1


def test_a_log_gets_plain_lines_and_a_table_at_the_end(room: Room, image: Path) -> None:
    addresses = ("--interface", "lo", "--group", str(GROUP), "--port", str(room.port), "--control", ":0")
    program = Program(diskcast("send", image, *addresses, "--max-wait", "0.2"))
    with contextlib.closing(program):
        assert program.wait(LIMIT_S) == 61
        lines = program.stderr_text().splitlines()
    assert lines[0].startswith("casting ")
    assert any(line.startswith("waiting for 1 receiver at https://127.0.0.1:") for line in lines)
    assert lines[-1].startswith("error: no receiver joined")
