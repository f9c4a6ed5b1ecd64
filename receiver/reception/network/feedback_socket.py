"""The socket that sends NACKs and REPORTs: unconnected UDP, which never waits and never fails."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from types import TracebackType
from typing import Self

from protocol.model.session_records import CastParameters
from receiver.reception.network.interface import ReceiveInterface


class FeedbackSocket:
    """A socket that unicasts feedback to a cast's sender; a context manager."""

    def __init__(self, interface: ReceiveInterface, sender_address: str) -> None:
        """Open a socket of the family of ``sender_address``; ``interface`` is the scope of link-local addresses."""
        self._interface = interface
        family = socket.AF_INET6 if ":" in sender_address else socket.AF_INET
        # Unconnected: a sender that is briefly down mustn't cause errors here.
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, parameters: CastParameters, datagram: bytes) -> None:
        """Send one datagram to the cast's sender; errors are ignored, since feedback is repeated anyway."""
        address = parameters.sender_address
        endpoint: tuple[str, int] | tuple[str, int, int, int] = (address, parameters.feedback_port)
        if ipaddress.ip_address(address).version == 6:
            scope = self._interface.index if ipaddress.ip_address(address).is_link_local else 0
            endpoint = (address, parameters.feedback_port, 0, scope)
        with contextlib.suppress(OSError):
            self._socket.sendto(datagram, endpoint)
