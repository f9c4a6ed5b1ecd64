"""Listening for other senders on the group while the room gathers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import asyncio_dgram

from protocol.constants import ANNOUNCE_INTERVAL_S
from protocol.errors import AddressInUseError, WireError
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId, CastParameters
from protocol.wire.codec import decode_control_untrusted
from protocol.wire.messages import Announce

_CONFLICT_WINDOW_S = 3 * ANNOUNCE_INTERVAL_S
"""Who hears the same cast this soon after its own start is the second and has to go. A sender that has been here for
longer stays: otherwise both would end."""
_FOREIGN_MAX = 16
"""Foreign casts that are told of; more of them are an attack on the operator's terminal."""


class ConflictWatch:
    """Tells of another sender of the same cast, which is an error, and of other casts, which agents must tell apart."""

    def __init__(
        self,
        sock: socket.socket,
        parameters: CastParameters,
        *,
        on_conflict: Callable[[AddressInUseError], None],
        on_foreign: Callable[[str], None],
    ) -> None:
        """Listen on ``sock``, in the group, which :meth:`run` closes."""
        self._socket = sock
        self._parameters = parameters
        self._on_conflict = on_conflict
        self._on_foreign = on_foreign
        self._foreign: set[CastId] = set()

    async def run(self) -> None:
        """Listen until cancelled."""
        started_at = time.monotonic()
        stream = await asyncio_dgram.from_socket(self._socket)
        try:
            while True:
                try:
                    datagram, address = await stream.recv()
                except OSError:  # an ICMP error that the kernel reports here
                    continue
                host = str(address[0]) if isinstance(address, tuple) else str(address)
                self.hear_untrusted(datagram, host, time.monotonic() - started_at)
        finally:
            stream.close()

    def hear_untrusted(self, datagram: bytes, address: str, age_s: float) -> None:
        """Judge one datagram that came from ``address`` when this sender was ``age_s`` old."""
        try:
            prefix, message = decode_control_untrusted(datagram)
        except WireError:
            return
        if not isinstance(message, Announce) or message.state is CastState.ENDED:
            return
        ours = self._parameters
        if prefix.cast_id != ours.cast_id:
            self._hear_foreign(CastId(prefix.cast_id), message, address)
        elif message.incarnation != ours.incarnation and age_s < _CONFLICT_WINDOW_S:
            self._on_conflict(
                AddressInUseError(
                    f"this image is already being cast to {ours.group} port {ours.port} by another sender on "
                    f"{address}: end that one, or choose another --group or --port"
                )
            )

    def _hear_foreign(self, cast_id: CastId, announce: Announce, address: str) -> None:
        if cast_id in self._foreign or len(self._foreign) >= _FOREIGN_MAX:
            return
        self._foreign.add(cast_id)
        name = announce.image_name if announce.image_name.isprintable() else "an image"
        self._on_foreign(
            f"{name} is cast to the same group and port by {address}: agents started without --sender will refuse to "
            "choose; give one of the casts another --group or --port"
        )
