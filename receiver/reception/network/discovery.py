"""Discovery of casts: listen for ANNOUNCE on the group, or query a sender that the operator named.

Anybody can announce anything; :mod:`receiver.reception.network.cast_finder` makes senders prove themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import trio

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX, DISCOVERY_SETTLE_S
from protocol.errors import AmbiguousCastError, NoSenderError, WireError, WireVersionError
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId
from protocol.wire.codec import foreign_version_untrusted, other_version_text
from protocol.wire.control_codec import decode_control_untrusted
from protocol.wire.messages import Announce
from receiver.reception.network.control_client import ControlClient, retry_until
from receiver.reception.network.data_socket import join_group
from receiver.reception.network.interface import ReceiveInterface

OFFERS_MAX: Final = 64
"""Most casts remembered while listening. A flood of announcements can hide only casts that the operator can still name
with --cast."""

_SO_ATTACH_FILTER: Final = 26
_TYPE_OFFSET: Final = 8 + 3
"""Offset of the message type for a socket filter: behind the UDP header, magic and version."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastOffer:
    """A cast that can be joined."""

    cast_id: CastId
    image_name: str
    control_url: str
    source: str | None
    """Source address of its datagrams; None if only its control API is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastChoice:
    """The operator's choice of the cast to join; a field that is None matches any cast."""

    cast_id: CastId | None = None
    image_name: str | None = None

    @property
    def restricted(self) -> bool:
        """Return whether the operator chose anything."""
        return self.cast_id is not None or self.image_name is not None

    def matches_id(self, cast_id: CastId) -> bool:
        """Return whether a cast with this id can match the choice."""
        return self.cast_id in (None, cast_id)

    def matches(self, cast_id: CastId, image_name: str) -> bool:
        """Return whether a cast matches the choice."""
        return self.matches_id(cast_id) and self.image_name in (None, image_name)

    def __str__(self) -> str:
        parts = [] if self.cast_id is None else [f"cast {self.cast_id:08x}"]
        if self.image_name is not None:
            parts.append(f"an image named {self.image_name!r}")
        return " with ".join(parts) or "any cast"


def single_offer(offers: Sequence[CastOffer]) -> CastOffer:
    """Return the only offer.

    Raises:
        AmbiguousCastError: there are several; chance mustn't decide which image a disk gets.
    """
    if len(offers) > 1:
        listing = "; ".join(
            f"{offer.cast_id:08x} {offer.image_name!r} at {offer.control_url}"
            for offer in sorted(offers, key=lambda offer: offer.cast_id)
        )
        first = min(offer.cast_id for offer in offers)
        raise AmbiguousCastError(
            f"{len(offers)} casts can be joined: {listing}; choose one with --cast, for example --cast {first:08x}"
        )
    return offers[0]


async def listen_for_cast(
    interface: ReceiveInterface, group: str, port: int, choice: CastChoice, *, wait_s: float
) -> CastOffer:
    """Listen on the group for a cast, without asking its sender for a proof.

    Unless the operator chose a cast, wait :data:`DISCOVERY_SETTLE_S` for others after the first ANNOUNCE.

    Args:
        interface: the interface to listen on.
        group: multicast address.
        port: UDP port.
        choice: the operator's choice.
        wait_s: time to wait for the first matching ANNOUNCE.

    Raises:
        NoSenderError: no matching cast was announced in time.
        WireVersionError: only a sender of another wire version was heard.
        AmbiguousCastError: several were announced.
        InterfaceError: the interface can't join the group.
        AddressInUseError: another program has the port.
    """
    async with announcement_listener(interface, group, port) as listener:
        offers: dict[CastId, CastOffer] = {}
        heard: set[CastId] = set()
        with trio.move_on_after(wait_s) as scope:
            while True:
                offer = await listener.next()
                if len(heard) < OFFERS_MAX:
                    heard.add(offer.cast_id)
                if not choice.matches(offer.cast_id, offer.image_name):
                    continue
                if choice.restricted:
                    return offer
                if not offers:
                    scope.deadline = trio.current_time() + DISCOVERY_SETTLE_S
                if len(offers) < OFFERS_MAX or offer.cast_id in offers:
                    offers[offer.cast_id] = offer
    if not offers and listener.other_version is not None:
        raise WireVersionError(listener.other_version)
    if not offers:
        raise NoSenderError(describe_silence(interface, group, port, choice, heard, wait_s))
    return single_offer(list(offers.values()))


class AnnouncementListener:
    """A member of the group that gets only announcements.

    Attributes:
        other_version: report of a sender of another wire version; None if none was heard.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        """Listen on ``sock``; :func:`announcement_listener` calls this."""
        self.other_version: str | None = None
        self._socket = sock

    async def next(self) -> CastOffer:
        """Return the next cast that is announced, and drop everything else."""
        while True:
            datagram, address = await self._socket.recvfrom(CONTROL_DATAGRAM_BYTES_MAX)
            host = str(address[0]).partition("%")[0]
            offer = _offer_untrusted(datagram, host)
            if offer is not None:
                return offer
            if self.other_version is None and (version := foreign_version_untrusted(datagram)) is not None:
                self.other_version = other_version_text(f"the sender at {host}", version)


@contextlib.asynccontextmanager
async def announcement_listener(
    interface: ReceiveInterface, group: str, port: int
) -> AsyncIterator[AnnouncementListener]:
    """Yield a listener in the group.

    Raises:
        InterfaceError: the interface can't join the group.
        AddressInUseError: another program has the port.
    """
    sock, _ = join_group(interface, group, port, source=None)
    with trio.socket.from_stdlib_socket(sock) as listener:
        _accept_announcements_only(sock)
        yield AnnouncementListener(listener)


async def request_cast(client: ControlClient, choice: CastChoice, *, wait_s: float) -> CastOffer:
    """Request the cast to join from a sender's control API.

    Args:
        client: client of the sender that the operator named.
        choice: the operator's choice.
        wait_s: time to retry.

    Raises:
        NoSenderError: no answer in time, or no matching cast.
        AmbiguousCastError: several casts match.
        ProtocolError: the server isn't a diskcast sender.
    """
    deadline = trio.current_time() + wait_s
    casts = await retry_until(deadline, client.casts)
    offers = [
        CastOffer(cast.cast_id, cast.image_name, client.url, None)
        for cast in casts
        if cast.state is not CastState.ENDED and choice.matches(cast.cast_id, cast.image_name)
    ]
    if not offers:
        running = ", ".join(f"{cast.cast_id:08x} {cast.image_name!r}" for cast in casts) or "nothing"
        raise NoSenderError(
            f"the sender at {client.url} doesn't cast {choice}; it casts {running}: check --cast and --image-name"
        )
    return single_offer(offers)


def _offer_untrusted(datagram: bytes, source: str) -> CastOffer | None:
    try:
        prefix, message = decode_control_untrusted(datagram)
    except WireError:
        return None
    if not isinstance(message, Announce) or message.state is CastState.ENDED:
        return None
    if not (message.image_name.isprintable() and message.control_url.isprintable()):
        return None  # these texts are shown on a terminal
    return CastOffer(CastId(prefix.cast_id), message.image_name, message.control_url, source)


def describe_silence(
    interface: ReceiveInterface,
    group: str,
    port: int,
    choice: CastChoice,
    heard: Iterable[CastId],
    wait_s: float,
) -> str:
    """Return the error for a search in which no matching cast was announced."""
    others = ", ".join(f"{cast_id:08x}" for cast_id in sorted(heard))
    if others:
        return (
            f"{choice} wasn't announced on {group} port {port} within {wait_s:g} s; these casts were: {others}; choose "
            "one with --cast"
        )
    return (
        f"no sender announced {choice} on {group} port {port} at {interface.name} within {wait_s:g} s: check that "
        f"diskcast send runs on this network with the same --group and --port, name it with --sender URL, or run "
        f"diskcast-agent doctor --interface {interface.name}"
    )


def _accept_announcements_only(sock: socket.socket) -> None:
    """Let the kernel drop everything but ANNOUNCE: the data of a running cast would keep this process busy for nothing.

    The filter is a classic BPF program (Linux' networking/filter.rst): load the type's octet, compare, accept or drop.
    """
    load_octet, jump_if_equal, ret = 0x30, 0x15, 0x06
    program = (
        struct.pack("=HBBI", load_octet, 0, 0, _TYPE_OFFSET)
        + struct.pack("=HBBI", jump_if_equal, 0, 1, Announce.WIRE_TYPE)
        + struct.pack("=HBBI", ret, 0, 0, 0xFFFF)
        + struct.pack("=HBBI", ret, 0, 0, 0)
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
