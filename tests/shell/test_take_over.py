"""A receiver whose cast another daemon takes over, under a clock that jumps.

Lost if these fail: a room that starts over, or never ends, because one daemon died.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import JoinRefusedError, NoSenderError, SenderLostError
from protocol.model.session_records import CastId, JoinGrant, JoinRequest
from receiver.reception.cast_link import CastLink
from tests.shell.small_cast import Place, SmallCast, SmallImage, threads_in_place
from tests.shell.test_cast_receiver import at_symbols, source_symbols

__all__ = ["threads_in_place"]
pytestmark = [pytest.mark.trio, pytest.mark.usefixtures("threads_in_place")]


@pytest.fixture
def cast(tmp_path: Path) -> SmallCast:
    return SmallCast(SmallImage(), tmp_path)


def once_at(place: Place, moment: trio.Event) -> Callable[[], Awaitable[CastLink]]:
    """Return a function that reports one takeover, by ``place`` at ``moment``."""
    reported = False

    async def wait_for_takeover() -> CastLink:
        nonlocal reported
        if reported:
            await trio.sleep_forever()
        await moment.wait()
        reported = True
        return place.link

    return wait_for_takeover


async def test_a_cast_that_another_daemon_takes_over_continues_with_the_rest(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    old, new = Place(cast), Place(cast)
    cast.place = old
    cast.start_sender()
    half = source_symbols(cast.image) // 2
    at_symbols(cast, half, cast.stop_sender)
    moved = trio.Event()

    async def take_over() -> None:
        while cast.sender is not None:
            await trio.sleep(0.1)
        await trio.sleep(8.0)
        cast.place = new
        cast.start_sender()
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        reception = await cast.receive(link=old.link, wait_for_takeover=once_at(new, moved))
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False, True]
    need = cast.joins[1].need
    assert need is not None
    assert 0 < need.sum() < cast.image.manifest.stored_mask.sum(), "what is verified isn't asked for again"
    assert reception.status.raw_bytes_kept == 0, "nothing was scanned"
    assert cast.image_symbols_sent <= source_symbols(cast.image) - half + 4 * 46
    assert [sock.closed for sock in cast.sockets] == [True, True]
    assert reception.reported


async def test_a_receiver_leaves_a_sender_that_still_sends_when_the_daemon_moves_the_cast(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """The daemon was restarted with other ports, and somebody repeats its old announcements."""
    old, new = Place(cast), Place(cast)
    cast.place = old
    cast.start_sender()
    moved = trio.Event()

    def take_over() -> None:
        cast.place = new
        cast.start_sender()
        moved.set()

    at_symbols(cast, 100, take_over)
    await cast.receive(link=old.link, wait_for_takeover=once_at(new, moved))
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.silences == []


async def test_a_take_over_ends_the_wait_for_a_sender_that_cannot_be_joined(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """The sender came back, announced itself, and died again before anybody had joined."""
    old, new = Place(cast), Place(cast)
    cast.place = old
    cast.start_sender()
    moved = trio.Event()

    def restart() -> None:
        cast.start_sender()
        cast.unreachable = True

    at_symbols(cast, 100, restart)

    async def take_over() -> None:
        while not cast.unreachable:
            await trio.sleep(0.1)
        await trio.sleep(5.0)
        cast.unreachable = False
        cast.place = new
        cast.start_sender()
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await cast.receive(link=old.link, wait_for_takeover=once_at(new, moved), sender_timeout_s=60.0)
    assert cast.path.read_bytes() == cast.image.raw
    assert autojump_clock.current_time() < 30.0


async def test_a_take_over_before_the_first_join(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    old, new = Place(cast), Place(cast)
    cast.place = new
    cast.start_sender()
    moved = trio.Event()

    async def report_move() -> None:
        await trio.sleep(4.0)
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(report_move)
        await cast.receive(link=old.link, wait_for_takeover=once_at(new, moved), join_timeout_s=30.0)
    assert cast.path.read_bytes() == cast.image.raw
    assert cast.observer.joins == [False]


class Refusing(Place):
    """A place whose control port serves another cast by now."""

    async def join(self, cast_id: CastId, request: JoinRequest) -> JoinGrant:
        raise JoinRefusedError("not here")

    async def _sender_here(self) -> SmallCast:
        raise NoSenderError("no such cast")


async def test_a_receiver_refused_at_the_old_place_waits_for_the_new_one(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    new = Place(cast)
    cast.place = new
    cast.start_sender()
    moved = trio.Event()

    async def report_move() -> None:
        await trio.sleep(10.0)
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(report_move)
        await cast.receive(
            link=Refusing(cast).link, wait_for_takeover=once_at(new, moved), join_timeout_s=30.0
        )
    assert cast.path.read_bytes() == cast.image.raw


async def test_a_receiver_refused_everywhere_ends_at_the_deadline(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    wait_for_takeover = once_at(Place(cast), trio.Event())
    with pytest.raises(JoinRefusedError):
        await cast.receive(link=Refusing(cast).link, wait_for_takeover=wait_for_takeover, join_timeout_s=30.0)
    assert autojump_clock.current_time() == pytest.approx(30.0, abs=1.0)


async def test_without_a_take_over_silence_ends_at_the_deadline(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    cast.start_sender()
    at_symbols(cast, 100, cast.stop_sender)
    with pytest.raises(SenderLostError, match="no daemon has taken the cast over"):
        await cast.receive(wait_for_takeover=once_at(Place(cast), trio.Event()), sender_timeout_s=30.0)
    assert 30.0 <= autojump_clock.current_time() < 34.0


async def test_a_result_that_no_sender_takes_does_not_delay_the_receiver(
    cast: SmallCast, autojump_clock: trio.testing.MockClock
) -> None:
    """The daemon gets the result at the next check-in."""
    cast.start_sender()

    def cut() -> None:
        cast.unreachable = True

    at_symbols(cast, source_symbols(cast.image), cut)
    reception = await cast.receive(
        wait_for_takeover=once_at(Place(cast), trio.Event()), sender_timeout_s=300.0
    )
    assert not reception.reported
    assert autojump_clock.current_time() < 20.0
    assert cast.path.read_bytes() == cast.image.raw
