"""Discovery on real loopback multicast: the right cast, or an error that lists the casts.

Lost if these fail: a classroom is imaged with the image that happened to be announced first.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
import trio.testing

from protocol.constants import DISCOVERY_SETTLE_S
from protocol.errors import AmbiguousCastError, NoSenderError, WireVersionError
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId
from receiver.reception.network.discovery import OFFERS_MAX, CastChoice, CastOffer, listen_for_cast
from receiver.reception.network.interface import find_interface
from tests.shell.loopback import GROUP_IPV4, LoopbackSender
from tests.support.network.ports import free_port_range
from tests.support.wire import announcement as make_announcement
from tests.support.wire import forged

pytestmark = pytest.mark.trio


def announcement(cast_id: int, name: str, *, state: int = CastState.CASTING) -> bytes:
    url = f"http://192.0.2.{cast_id % 250}:7411"
    message = make_announcement(incarnation=5, state=state, image_name=name, control_url=url)
    return forged(message, cast_id=cast_id)


async def discover(
    clock: trio.testing.MockClock,
    datagrams: Iterable[bytes],
    choice: CastChoice | None = None,
    wait_s: float = 20.0,
) -> CastOffer:
    """Run a discovery that is fed datagrams while it listens; afterwards the clock jumps to its deadline."""
    [port] = free_port_range(1)
    offers: list[CastOffer] = []
    errors: list[Exception] = []

    async def listen() -> None:
        interface = find_interface("lo", GROUP_IPV4)
        try:
            offers.append(
                await listen_for_cast(interface, GROUP_IPV4, port, choice or CastChoice(), wait_s=wait_s)
            )
        except (NoSenderError, AmbiguousCastError, WireVersionError) as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        with LoopbackSender(GROUP_IPV4, port) as sender:
            for datagram in datagrams:
                sender.send(datagram)
                # Each is taken before the next is sent: the test isn't about the queue's length.
                await trio.testing.wait_all_tasks_blocked(0.001)
        clock.autojump_threshold = 0.0
    if errors:
        raise errors[0]
    return offers[0]


async def test_the_only_cast_is_found(mock_clock: trio.testing.MockClock) -> None:
    offer = await discover(mock_clock, [announcement(7, "lab")] * 3)
    assert offer == CastOffer(CastId(7), "lab", "http://192.0.2.7:7411", "127.0.0.1")
    assert mock_clock.current_time() == pytest.approx(DISCOVERY_SETTLE_S)


async def test_several_casts_are_never_chosen_from_by_chance(mock_clock: trio.testing.MockClock) -> None:
    with pytest.raises(AmbiguousCastError) as caught:
        await discover(mock_clock, [announcement(9, "office"), announcement(7, "lab")])
    for word in ("00000007 'lab' at http://192.0.2.7:7411", "00000009 'office'", "--cast 00000007"):
        assert word in str(caught.value)


@pytest.mark.parametrize("choice", [CastChoice(cast_id=CastId(7)), CastChoice(image_name="lab")])
async def test_a_chosen_cast_is_joined_at_once(
    mock_clock: trio.testing.MockClock, choice: CastChoice
) -> None:
    offer = await discover(mock_clock, [announcement(9, "office"), announcement(7, "lab")], choice)
    assert offer.cast_id == 7
    assert mock_clock.current_time() == 0.0


async def test_silence_ends_at_the_deadline(mock_clock: trio.testing.MockClock) -> None:
    with pytest.raises(
        NoSenderError, match=r"any cast on .* within 20 s.*diskcast send.*doctor --interface lo"
    ):
        await discover(mock_clock, [])
    assert mock_clock.current_time() == pytest.approx(20.0)


async def test_a_sender_of_another_wire_version_is_named_with_both_versions(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Without it, the agent would say that no sender announces anything while one does."""
    old = announcement(7, "lab")[:2] + b"\1" + announcement(7, "lab")[3:]
    with pytest.raises(WireVersionError, match=r"127\.0\.0\.1 speaks wire version 1, this program .* 2"):
        await discover(mock_clock, [old] * 3)
    offer = await discover(mock_clock, [old, announcement(8, "lab")])
    assert offer.cast_id == 8


async def test_other_casts_than_the_chosen_are_named(mock_clock: trio.testing.MockClock) -> None:
    choice = CastChoice(CastId(8), "lab")
    with pytest.raises(
        NoSenderError, match=r"cast 00000008 with an image named 'lab'.*these casts were: 00000007"
    ):
        await discover(mock_clock, [announcement(7, "lab")], choice)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"x" * 1400,
        announcement(7, "lab")[:-1],
        announcement(7, "ended", state=CastState.ENDED),
        announcement(7, "\x1b[2J"),
    ],
    ids=["empty", "noise", "truncated", "ended", "escapes"],
)
async def test_other_datagrams_are_ignored(mock_clock: trio.testing.MockClock, datagram: bytes) -> None:
    with pytest.raises(NoSenderError):
        await discover(mock_clock, [datagram])


async def test_a_flood_of_casts_is_bounded(mock_clock: trio.testing.MockClock) -> None:
    with pytest.raises(AmbiguousCastError, match=f"{OFFERS_MAX} casts"):
        await discover(mock_clock, [announcement(number, "x") for number in range(OFFERS_MAX + 20)])
