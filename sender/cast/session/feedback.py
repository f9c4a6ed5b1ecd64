"""Receive feedback datagrams and pass them to the session."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Final

import asyncio_dgram

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX
from sender.cast.session.locked_session import LockedSession

_TURN_DATAGRAMS_MAX: Final = 128
"""Datagrams of one turn of the event loop, which has other work as well."""
_LOCK_S: Final = 0.002
"""Longest time that a turn holds the session's lock: the transmitter needs it for every batch of 5 ms."""
_BUSY_TURNS_PER_S: Final = 1000.0
"""Turns per second from which on the socket is polled: waking the event loop costs 30 µs, six times a datagram's work.
A thousand receivers send 200 reports per second."""
_POLL_S: Final = 0.004
"""Interval of polls; shows in the measured round-trip time."""
_QUIET_S: Final = 0.25
"""Time of few datagrams after which the socket is awaited again."""


class FeedbackPort:
    """The UDP port for NACKs and REPORTs.

    asyncio-dgram awaits the first datagram of a turn; the others are taken from the socket without waiting, under one
    lock. In a flood the socket is polled, so that forged datagrams cost little more than their checks. Datagrams wait
    in the socket's bounded buffer; asyncio-dgram's own queue holds at most one.
    """

    def __init__(self, sock: socket.socket, locked_session: LockedSession) -> None:
        """Take over ``sock``, bound and non-blocking; :meth:`run` closes it."""
        self.received_count = 0
        self._socket = sock
        self._locked_session = locked_session

    async def run(self) -> None:
        """Receive until cancelled."""
        with self._socket:
            while True:
                await self._receive_until_busy()
                await self._poll_until_quiet()

    async def _receive_until_busy(self) -> None:
        stream = await asyncio_dgram.from_socket(self._socket.dup())
        turns = 0.0
        turned_at = time.monotonic()
        try:
            while turns < _BUSY_TURNS_PER_S * _QUIET_S:
                try:
                    datagram, _address = await stream.recv()
                except OSError:
                    # An ICMP error that the kernel reports here; it concerns none of our datagrams.
                    continue
                self._process([datagram, *self._waiting(_TURN_DATAGRAMS_MAX - 1)])
                now = time.monotonic()
                turns = max(0.0, turns - (now - turned_at) * _BUSY_TURNS_PER_S) + 1.0
                turned_at = now
        finally:
            stream.close()

    async def _poll_until_quiet(self) -> None:
        quiet_polls = 0
        while quiet_polls < _QUIET_S / _POLL_S:
            await asyncio.sleep(_POLL_S)
            datagrams = self._waiting(_TURN_DATAGRAMS_MAX)
            quiet_polls = 0 if len(datagrams) > _BUSY_TURNS_PER_S * _POLL_S else quiet_polls + 1
            self._process(datagrams)

    def _waiting(self, count_max: int) -> list[bytes]:
        """Return datagrams that wait in the socket; one that is too long keeps a length that is refused."""
        datagrams: list[bytes] = []
        while len(datagrams) < count_max:
            try:
                datagrams.append(self._socket.recv(CONTROL_DATAGRAM_BYTES_MAX + 1, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            except OSError:  # an ICMP error, as above
                continue
        return datagrams

    def _process(self, datagrams: list[bytes]) -> None:
        """Pass datagrams to the session, with a pause for the other threads when that takes long."""
        index = 0
        while index < len(datagrams):
            with self._locked_session.update() as (session, now):
                while index < len(datagrams):
                    session.receive_feedback_untrusted(datagrams[index], now)
                    index += 1
                    if time.monotonic() - now > _LOCK_S:
                        break
        self.received_count += len(datagrams)
