"""The sockets of DHCP on one interface: port 67, and the boot server's port 4011."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

import structlog

from protocol.errors import AddressInUseError, ConfigurationError, ProtocolError
from sender.netboot.serve.boot_files import BootFile, UnsupportedClientError
from sender.netboot.serve.dhcp_codec import (
    BROADCAST,
    UNSPECIFIED,
    DhcpMessage,
    MessageType,
    Option,
    decode_dhcp_untrusted,
    encode_dhcp,
)
from sender.netboot.serve.machine_sightings import MachineSightings
from sender.netboot.serve.proxy_dhcp import CLIENT_PORT, PROXY_PORT, SERVER_PORT
from sender.netboot.serve.statistics import BootStatistics

Answer = Callable[[DhcpMessage, int, float], tuple[DhcpMessage, BootFile | None] | None]
"""Returns the reply to a message on a port, with the boot file in it."""

_log = structlog.get_logger(__name__)


class DhcpPort(asyncio.DatagramProtocol):
    """One port of a DHCP service."""

    def __init__(
        self,
        port: int,
        answer: Answer,
        *,
        own_address: IPv4Address,
        sightings: MachineSightings,
        statistics: BootStatistics,
        alone: bool,
    ) -> None:
        """Answer with ``answer``.

        Args:
            port: number of the port.
            answer: decides the replies.
            own_address: address of this service.
            sightings: machines that asked.
            statistics: counts replies.
            alone: no other DHCP server should be on this network.
        """
        self._port = port
        self._answer = answer
        self._own_address = own_address
        self._sightings = sightings
        self._statistics = statistics
        self._alone = alone
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Remember the socket."""
        self._transport = transport

    def error_received(self, exc: Exception) -> None:
        """Ignore an ICMP error: the client repeats its question."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a client's message."""
        try:
            request = decode_dhcp_untrusted(data)
        except ProtocolError:
            self._statistics.count_malformed()
            return
        now = time.monotonic()
        if self._alone:
            self._watch_for_other_server(request, now)
        try:
            answered = self._answer(request, self._port, now)
        except UnsupportedClientError as error:
            if self._sightings.is_news(request.mac, "unsupported", now):
                _log.warning("boot_unsupported", mac=request.mac, reason=str(error))
            return
        if answered is None:
            return
        message, file = answered
        if file is not None:
            self._note(request, file, now)
        assert self._transport is not None
        self._transport.sendto(encode_dhcp(message), self._destination(message, addr))

    def _destination(self, message: DhcpMessage, source: tuple[str, int]) -> tuple[str, int]:
        if message.relay_address != UNSPECIFIED:
            return str(message.relay_address), SERVER_PORT
        if self._port == PROXY_PORT and IPv4Address(source[0]) != UNSPECIFIED:
            return source
        return str(BROADCAST), CLIENT_PORT

    def _note(self, request: DhcpMessage, file: BootFile, now: float) -> None:
        self._statistics.count_reply()
        if not request.is_ipxe:
            self._sightings.saw(request.mac, file.firmware)
        if self._sightings.is_news(request.mac, file.name, now):
            _log.info(
                "boot_file_offered",
                mac=request.mac,
                firmware=file.firmware.value,
                client=file.client.value,
                file=file.name,
            )

    def _watch_for_other_server(self, request: DhcpMessage, now: float) -> None:
        server = request.address_option(Option.SERVER_IDENTIFIER)
        if (
            request.message_type is MessageType.REQUEST
            and server is not None
            and server != self._own_address
            and self._sightings.is_news("", f"server {server}", now)
        ):
            _log.error(
                "dhcp_server_found",
                address=str(server),
                fix="stop one of the two: restart this service with --mode proxy to leave addresses to the other",
            )


def open_dhcp_socket(interface_name: str, port: int) -> socket.socket:
    """Return a UDP socket for broadcasts on one interface.

    Raises:
        AddressInUseError: another DHCP server uses the port.
        ConfigurationError: the port isn't allowed.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface_name.encode() + b"\0")
        sock.bind(("", port))
    except OSError as error:
        sock.close()
        raise bind_error(error, f"UDP port {port} on {interface_name}") from error
    return sock


def bind_error(error: OSError, place: str) -> ConfigurationError:
    """Return the error of a port that can't be bound."""
    if isinstance(error, PermissionError):
        return ConfigurationError(
            f"cannot bind {place}: ports below 1024 need CAP_NET_BIND_SERVICE; run as root, or use the unit "
            "diskcast-netboot.service"
        )
    return AddressInUseError(
        f"cannot bind {place}: {error.strerror}; if a DHCP or TFTP server runs on this machine, let it do the work: "
        "diskcast netboot print-config"
    )


DHCP_PORTS: Final = (SERVER_PORT, PROXY_PORT)
