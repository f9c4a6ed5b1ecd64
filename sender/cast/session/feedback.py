"""Receive feedback datagrams and pass them to the session."""

from __future__ import annotations

import socket

import asyncio_dgram

from sender.cast.session.locked_session import LockedSession


class FeedbackPort:
    """The UDP port for NACKs and REPORTs.

    asyncio-dgram's own queue is unbounded, but holds at most one datagram: asyncio reads one per turn of the loop, and
    :meth:`run` awaits only the next one. More datagrams wait in the socket's bounded buffer.
    """

    def __init__(self, sock: socket.socket, locked_session: LockedSession) -> None:
        """Take over ``sock``, bound and non-blocking; :meth:`run` closes it."""
        self.received_count = 0
        self._socket = sock
        self._locked_session = locked_session

    async def run(self) -> None:
        """Receive until cancelled."""
        stream = await asyncio_dgram.from_socket(self._socket)
        try:
            while True:
                try:
                    datagram, _address = await stream.recv()
                except OSError:
                    # An ICMP error that the kernel reports here; it concerns none of our datagrams.
                    continue
                self.received_count += 1
                with self._locked_session.update() as (session, now):
                    session.receive_feedback_untrusted(datagram, now)
        finally:
            stream.close()
