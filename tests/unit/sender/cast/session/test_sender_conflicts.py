"""Two senders on one group: the second sender of a cast stops, and other casts are reported once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from protocol.errors import AddressInUseError
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId, CastParameters
from sender.cast.session.sender_conflicts import ConflictWatch
from tests.support.network.lab import LIMIT_S
from tests.support.wire import announcement, forged

PARAMETERS = CastParameters(
    CastId(5),
    100,
    bytes(32),
    "lab",
    1 << 30,
    1 << 18,
    1000,
    1440,
    "239.1.1.1",
    7410,
    "10.0.0.1",
    7411,
    "http://x",
)


class Heard:
    def __init__(self) -> None:
        self.conflicts: list[AddressInUseError] = []
        self.notes: list[str] = []
        self.suspects: list[str] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            self.watch = ConflictWatch(
                unused,
                PARAMETERS,
                is_confirmed=lambda _url, _source: False,
                on_conflict=self.conflicts.append,
                on_foreign=self.notes.append,
            )

    def take(self, datagram: bytes, address: str, age_s: float) -> None:
        suspect = self.watch.take_untrusted(datagram, address, age_s)
        if suspect is not None:
            self.suspects.append(suspect.control_url)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def announce(cast_id: int, incarnation: int, state: int = CastState.CASTING, name: str = "other") -> bytes:
    message = announcement(incarnation=incarnation, state=state, image_name=name)
    return forged(message, cast_id=cast_id)


def test_a_sender_ignores_its_own_datagrams(heard: Heard) -> None:
    heard.take(announce(5, 100), "10.0.0.1", 0.1)
    assert not heard.conflicts
    assert not heard.notes


def test_a_second_sender_of_a_cast_is_only_a_suspect(heard: Heard) -> None:
    """Anybody can announce the cast: it mustn't end before the announced sender has been asked."""
    heard.take(announce(5, 99), "10.0.0.2", 0.1)
    assert heard.suspects == ["http://10.0.0.2:7411"]
    assert not heard.conflicts


@pytest.mark.parametrize(
    ("image_id", "said"),
    [
        (bytes(32), "this image is already being cast to 239.1.1.1 port 7410 by another sender on 127.0.0.1"),
        (bytes([7]) * 32, "other is being cast under the same cast id, 00000005"),
    ],
    ids=["same image", "other image"],
)
def test_a_confirmed_second_sender_is_named_with_its_image(image_id: bytes, said: str) -> None:
    async def watch_until_conflict() -> str:
        conflict = asyncio.get_running_loop().create_future()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.bind(("127.0.0.1", 0))
            watch = ConflictWatch(
                member,
                PARAMETERS,
                is_confirmed=lambda _url, _source: True,
                on_conflict=conflict.set_result,
                on_foreign=lambda _note: None,
            )
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rival:
                message = announcement(incarnation=99, image_id=image_id, image_name="other")
                rival.sendto(forged(message, cast_id=5), member.getsockname())
            running = asyncio.create_task(watch.run())
            text = str(await conflict)
            running.cancel()
            return text

    assert said in asyncio.run(asyncio.wait_for(watch_until_conflict(), LIMIT_S))


def test_suspects_are_asked_once_and_up_to_a_limit(heard: Heard) -> None:
    for host in range(2, 100):
        for _ in range(2):
            heard.take(announce(5, 99), f"10.0.0.{host}", 0.1)
    assert len(heard.suspects) == 4


def test_the_first_sender_of_a_cast_continues(heard: Heard) -> None:
    heard.take(announce(5, 99), "10.0.0.1", 60.0)
    assert not heard.suspects


def test_an_ended_cast_is_no_conflict(heard: Heard) -> None:
    heard.take(announce(5, 99, CastState.ENDED), "10.0.0.1", 0.1)
    heard.take(announce(6, 99, CastState.ENDED), "10.0.0.2", 0.1)
    assert not heard.conflicts
    assert not heard.notes


def test_other_casts_on_the_group_are_reported_once_and_up_to_a_limit(heard: Heard) -> None:
    for cast_id in range(6, 100):
        for _ in range(2):
            heard.take(announce(cast_id, 1), "10.0.0.2", 60.0)
    assert len(heard.notes) == 16
    assert "10.0.0.2 casts other to the same group and port" in heard.notes[0]


@pytest.mark.parametrize("datagram", [b"", b"\xd1\x5c", bytes(1400), announce(6, 1)[:-1]])
def test_garbage_is_ignored(heard: Heard, datagram: bytes) -> None:
    heard.take(datagram, "10.0.0.2", 0.1)
    assert not heard.conflicts
    assert not heard.notes


def test_a_name_with_terminal_escapes_is_not_shown(heard: Heard) -> None:
    heard.take(announce(6, 1, name="\x1b[2Jx"), "10.0.0.2", 0.1)
    assert heard.notes[0].isprintable()


def test_a_program_of_another_wire_version_is_reported_once_with_both_versions(heard: Heard) -> None:
    """Its agents and this cast's would wait for each other without a reason on either side."""
    datagram = announce(6, 1)
    for _ in range(3):
        heard.take(datagram[:2] + b"\1" + datagram[3:], "10.0.0.9", 0.1)
    (note,) = heard.notes
    assert (
        "10.0.0.9 speaks wire version 1, this program speaks version 2: upgrade a program at 10.0.0.9" in note
    )
