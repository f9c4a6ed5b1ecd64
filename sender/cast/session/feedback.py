"""The feedback socket: every datagram that receivers send goes to the session as it is."""

from __future__ import annotations

import socket

import asyncio_dgram

from sender.cast.session.locked_session import LockedSession


class FeedbackPort:
    """Receives NACKs and REPORTs on a bound UDP socket.

    asyncio-dgram's own queue has no bound, but it holds no more than one datagram: asyncio reads one a turn of the
    loop, and :meth:`run` awaits nothing but the next one. What comes faster waits in the socket's buffer, whose bound
    the kernel keeps.
    """

    def __init__(self, sock: socket.socket, shared: LockedSession) -> None:
        """Take over ``sock``, bound and non-blocking; :meth:`run` closes it."""
        self.received_count = 0
        self._socket = sock
        self._shared = shared

    async def run(self) -> None:
        """Receive until cancelled."""
        stream = await asyncio_dgram.from_socket(self._socket)
        try:
            while True:
                try:
                    datagram, _address = await stream.recv()
                except OSError:  # an ICMP error that the kernel reports here; it concerns no datagram of ours
                    continue
                self.received_count += 1
                with self._shared.update() as (session, now):
                    session.receive_feedback_untrusted(datagram, now)
        finally:
            stream.close()
