"""The search for a cast on real loopback multicast, with real TLS servers that tell the truth or lie.

Lost if these fail: a program that announces a cast decides which image is written, or keeps a machine from its cast.
"""

from __future__ import annotations

import dataclasses
import json
import random
import urllib.parse
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from protocol.control.control_messages import cast_to_json
from protocol.errors import (
    AmbiguousCastError,
    CertificateError,
    DiskcastError,
    JoinRefusedError,
    NoSenderError,
)
from protocol.model.session_records import CastId
from protocol.program.peer_trust import PeerTrust
from receiver.reception.network.cast_finder import find_cast
from receiver.reception.network.discovery import CastChoice, CastOffer
from receiver.reception.network.interface import find_interface
from receiver.reception.network.sender_access import SenderAccess
from tests.shell.loopback import GROUP_IPV4, LoopbackSender
from tests.shell.test_control_client import CAST, SECRET, Server
from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range
from tests.support.network.tls_peer import shared_certificate
from tests.support.wire import announcement, forged

pytestmark = pytest.mark.trio

PINNED = PeerTrust(pins=(shared_certificate().pin,))
WITH_CODE = SenderAccess(PINNED, SECRET)
WAIT_S = 1.5


@pytest.fixture
def servers() -> Iterator[Callable[[], Server]]:
    made: list[Server] = []

    def make() -> Server:
        made.append(Server())
        return made[-1]

    yield make
    for server in made:
        server.close()


def offer_cast(server: Server, cast_id: int, **changes: object) -> bytes:
    """Let the server describe a cast, and return an announcement of it."""
    cast = dataclasses.replace(CAST, cast_id=CastId(cast_id), **changes)
    server.answers[f"/api/v1/casts/{cast_id:08x}"] = 200, json.dumps(cast_to_json(cast)).encode()
    return hint(cast_id, server.client.url)


def hint(cast_id: int, control_url: str) -> bytes:
    """Return an announcement that nobody has signed, as far as the agent can know."""
    return forged(announcement(image_name="as announced", control_url=control_url), cast_id=cast_id)


async def find(
    datagrams: list[bytes],
    access: SenderAccess,
    *,
    choice: CastChoice | None = None,
    wait_s: float = LIMIT_S,
) -> CastOffer:
    """Search while the datagrams are sent again and again."""
    [port] = free_port_range(1)
    order = random.Random(2)
    results: list[CastOffer | DiskcastError] = []

    async def search() -> None:
        interface = find_interface("lo", GROUP_IPV4)
        try:
            results.append(
                await find_cast(
                    interface,
                    GROUP_IPV4,
                    port,
                    choice or CastChoice(),
                    access,
                    wait_s=wait_s,
                    rng=random.Random(1),
                )
            )
        except DiskcastError as error:
            results.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(search)
        with LoopbackSender(GROUP_IPV4, port) as sender:
            while True:
                order.shuffle(datagrams)  # the socket's queue drops the end of a burst
                for datagram in datagrams:
                    sender.send(datagram)
                await trio.sleep(0.05)
    [result] = results
    if isinstance(result, DiskcastError):
        raise result
    return result


async def test_the_senders_own_description_counts(servers: Callable[[], Server]) -> None:
    real = servers()
    offer = await find([offer_cast(real, 7, image_name="lab")], WITH_CODE)
    assert offer == CastOffer(CastId(7), "lab", real.client.url, "127.0.0.1")
    assert real.requests[0][2]["Authorization"] == f"Bearer {SECRET}"


async def test_liars_are_put_aside_and_get_no_secret(servers: Callable[[], Server]) -> None:
    """They announce the same cast at other URLs: one with another certificate, one without TLS, one that is dead."""
    real, rogue = servers(), servers()
    access = SenderAccess(PeerTrust(pins=(real.trust.pins[0][:20],)), SECRET)
    rogue.use_certificate_of_its_own()
    datagrams = [
        offer_cast(rogue, 7),
        hint(7, "http://127.0.0.1:80"),
        hint(7, "https://127.0.0.1:1"),
        hint(7, "nonsense"),
        hint(7, f"https://localhost:{urllib.parse.urlsplit(rogue.client.url).port}"),
        offer_cast(real, 7),
    ]
    offer = await find(datagrams, access)
    assert offer.control_url == real.client.url
    assert not rogue.requests


async def test_only_a_rogue_is_a_certificate_error(servers: Callable[[], Server]) -> None:
    rogue = servers()
    access = SenderAccess(PeerTrust(pins=("a" * 20,)), SECRET)
    with pytest.raises(CertificateError, match="a" * 20):
        await find([offer_cast(rogue, 7)], access, wait_s=WAIT_S)
    assert not rogue.requests


async def test_a_code_chooses_its_cast_among_those_of_one_sender(servers: Callable[[], Server]) -> None:
    """The other cast refuses the secret, which is no other's."""
    other, real = servers(), servers()
    foreign = offer_cast(other, 6)
    other.answers["/api/v1/casts/00000006"] = 401, b'{"detail": "check the join code"}'
    assert (await find([foreign, offer_cast(real, 7)], WITH_CODE)).cast_id == 7
    with pytest.raises(JoinRefusedError, match="check the join code"):
        await find([foreign], WITH_CODE, wait_s=WAIT_S)


async def test_without_a_code_several_casts_are_never_chosen_from_by_chance(
    servers: Callable[[], Server],
) -> None:
    server = servers()
    datagrams = [offer_cast(server, 6, image_name="lab"), offer_cast(server, 7, image_name="office")]
    with pytest.raises(AmbiguousCastError, match="00000006 'lab'"):
        await find(datagrams, SenderAccess(PINNED))
    choice = CastChoice(image_name="office")
    assert (await find(datagrams, SenderAccess(PINNED), choice=choice)).cast_id == 7
    assert (await find(datagrams, SenderAccess(PINNED), choice=CastChoice(cast_id=CastId(6)))).cast_id == 6


async def test_a_dead_sender_is_named(servers: Callable[[], Server]) -> None:
    with pytest.raises(NoSenderError, match=r"127\.0\.0\.1:1.*firewall"):
        await find([hint(7, "https://127.0.0.1:1")], WITH_CODE, wait_s=WAIT_S)
    with pytest.raises(NoSenderError, match="diskcast send runs"):
        await find([], WITH_CODE, wait_s=0.1)


async def test_a_flood_of_invented_casts_does_not_hide_the_real_one(servers: Callable[[], Server]) -> None:
    real = servers()
    invented = [hint(number, "https://127.0.0.1:1") for number in range(100, 400)]
    assert (await find([*invented, offer_cast(real, 7)], WITH_CODE)).cast_id == 7
