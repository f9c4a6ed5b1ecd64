"""Detect other senders on the group while the room gathers.

An ANNOUNCE proves nothing: anybody on the network can send one, and it mustn't end a cast. A second sender of the same
cast therefore counts only once :mod:`sender.cast.session.rival_check` has confirmed it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import asyncio_dgram

from protocol.constants import ANNOUNCE_INTERVAL_S
from protocol.errors import AddressInUseError, WireError
from protocol.model.cast_state import CastState
from protocol.model.session_records import CastId, CastParameters
from protocol.wire.codec import foreign_version_untrusted, other_version_text
from protocol.wire.control_codec import decode_control_untrusted
from protocol.wire.messages import Announce
from sender.blocking_calls import start_blocking_call

_CONFLICT_WINDOW_S = 3 * ANNOUNCE_INTERVAL_S
"""A sender that hears its own cast within this time after its start is the second one and stops. An older sender
continues: otherwise both would stop."""
_CHECKS_MAX = 4
"""Most suspects that are asked, one at a time: announcements are cheap, connections aren't."""
_FOREIGN_MAX = 16
"""Most foreign casts to report: more could be an attack on the operator's terminal."""


class ConflictWatch:
    """A watch for another sender of the same cast, which is an error, and for other casts on the same group."""

    def __init__(
        self,
        sock: socket.socket,
        parameters: CastParameters,
        *,
        is_confirmed: Callable[[str, str], bool],
        on_conflict: Callable[[AddressInUseError], None],
        on_foreign: Callable[[str], None],
    ) -> None:
        """Prepare to listen.

        Args:
            sock: a member of the group; :meth:`run` closes it.
            parameters: this sender's cast.
            is_confirmed: asks the announced URL, with the announcement's source, in a thread.
            on_conflict: called with the error when another sender of this cast is confirmed.
            on_foreign: called with a note for the operator.
        """
        self._socket = sock
        self._parameters = parameters
        self._is_confirmed = is_confirmed
        self._checked: set[tuple[str, str]] = set()
        self._on_conflict = on_conflict
        self._on_foreign = on_foreign
        self._foreign: set[CastId] = set()
        self._other_version_reported = False

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
                suspect = self.take_untrusted(datagram, host, time.monotonic() - started_at)
                if suspect is not None:
                    await self._check(suspect, host)
        finally:
            stream.close()

    async def _check(self, rival: Announce, address: str) -> None:
        if await start_blocking_call(lambda: self._is_confirmed(rival.control_url, address), "rival check"):
            self._on_conflict(AddressInUseError(self._conflict_text(rival, address)))
        else:
            self._on_foreign(
                f"{address} announces this cast too, without being its sender: machines with the join code ignore it; "
                "if it is a second diskcast send, stop it, otherwise look for a rogue program there"
            )

    def _conflict_text(self, rival: Announce, address: str) -> str:
        ours = self._parameters
        place = f"{ours.group} port {ours.port} by another sender on {address}"
        if rival.image_id == ours.image_id:
            return f"this image is already being cast to {place}: stop that one, or choose another --group or --port"
        return (
            f"{_name_of(rival)} is being cast under the same cast id, {ours.cast_id:08x}, to {place}: choose another "
            "--cast-id, --group or --port"
        )

    def take_untrusted(self, datagram: bytes, address: str, age_s: float) -> Announce | None:
        """Take one datagram from ``address``, received ``age_s`` after the start of this sender.

        Returns:
            The announcement of a suspected rival, to be checked now; None if there is nothing to check.
        """
        try:
            prefix, message = decode_control_untrusted(datagram)
        except WireError as error:
            if error.reason == "bad_version":
                self._note_other_version(datagram, address)
            return None
        if not isinstance(message, Announce) or message.state is CastState.ENDED:
            return None
        ours = self._parameters
        if prefix.cast_id != ours.cast_id:
            self._note_foreign(CastId(prefix.cast_id), message, address)
        elif message.incarnation != ours.incarnation and age_s < _CONFLICT_WINDOW_S:
            suspect = message.control_url, address
            if suspect not in self._checked and len(self._checked) < _CHECKS_MAX:
                self._checked.add(suspect)
                return message
        return None

    def _note_other_version(self, datagram: bytes, address: str) -> None:
        version = foreign_version_untrusted(datagram)
        if version is not None and not self._other_version_reported:
            self._other_version_reported = True
            self._on_foreign(other_version_text(f"a program at {address}", version))

    def _note_foreign(self, cast_id: CastId, announce: Announce, address: str) -> None:
        if cast_id in self._foreign or len(self._foreign) >= _FOREIGN_MAX:
            return
        self._foreign.add(cast_id)
        self._on_foreign(
            f"{address} casts {_name_of(announce)} to the same group and port: agents without --sender can't choose a "
            "cast; give one of the casts another --group or --port"
        )


def _name_of(announce: Announce) -> str:
    """Return the announced image's name, which anybody may have made up, as it can be printed."""
    return announce.image_name if announce.image_name.isprintable() else "an image"
