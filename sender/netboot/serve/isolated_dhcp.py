"""DHCP for an isolated network: addresses from a small pool, and the boot file in the same reply. Pure."""

from __future__ import annotations

import math
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from sender.netboot.serve.boot_files import BootFile, BootFileTable, ServiceAddress, UnsupportedClientError
from sender.netboot.serve.dhcp_codec import (
    UNSPECIFIED,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    address_bytes,
)
from sender.netboot.serve.lease_pool import LeasePool
from sender.netboot.serve.proxy_dhcp import PROXY_PORT, add_boot_file, boot_options, reply

LEASE_S: Final = 3600.0
"""An hour: longer than most casts, so that few leases are renewed during one; short for a room that changes daily."""


class IsolatedDhcp:
    """The DHCP service of one isolated network."""

    def __init__(
        self, service: ServiceAddress, network: IPv4Network, files: BootFileTable, pool: LeasePool
    ) -> None:
        """Lease addresses of ``pool`` in ``network``, and answer with boot files of ``files``."""
        self._service = service
        self._network = network
        self._files = files
        self._pool = pool

    def answer(
        self, request: DhcpMessage, port: int, now: float
    ) -> tuple[DhcpMessage, BootFile | None] | None:
        """Return the reply to a client's message, with its boot file if it boots; None if there is no reply.

        Raises:
            UnsupportedClientError: there is no loader for this machine that asks the boot server's port; on port 67 it
                gets its address without a boot file.
        """
        if request.operation is not DhcpOperation.REQUEST:
            return None
        if port == PROXY_PORT:
            if request.message_type not in (MessageType.REQUEST, MessageType.INFORM):
                return None
            file = self._files.choose(request, self._service)
            return None if file is None else self._reply(request, MessageType.ACK, UNSPECIFIED, file)
        match request.message_type:
            case MessageType.DISCOVER:
                return self._offer(request, now)
            case MessageType.REQUEST:
                return self._acknowledge(request, now)
            case MessageType.RELEASE:
                self._pool.release(request.mac, request.client_address)
            case MessageType.DECLINE:
                declined = request.address_option(Option.REQUESTED_ADDRESS)
                if declined is not None:
                    self._pool.decline(request.mac, declined, now)
        return None

    def _offer(self, request: DhcpMessage, now: float) -> tuple[DhcpMessage, BootFile | None] | None:
        address = self._pool.offer(request.mac, request.address_option(Option.REQUESTED_ADDRESS), now)
        if address is None:
            return None
        return self._reply(request, MessageType.OFFER, address, self._boot_file(request))

    def _acknowledge(self, request: DhcpMessage, now: float) -> tuple[DhcpMessage, BootFile | None] | None:
        server = request.address_option(Option.SERVER_IDENTIFIER)
        if server is not None and server != self._service.address:
            return None  # it chose another server; the offered address becomes free by itself
        wanted = request.address_option(Option.REQUESTED_ADDRESS) or request.client_address
        if not self._pool.commit(request.mac, wanted, now):
            message = reply(request, MessageType.NAK, self._service.address, options={})
            return message, None
        return self._reply(request, MessageType.ACK, wanted, self._boot_file(request))

    def _boot_file(self, request: DhcpMessage) -> BootFile | None:
        try:
            return self._files.choose(request, self._service)
        except UnsupportedClientError:
            return None

    def _reply(
        self, request: DhcpMessage, kind: MessageType, address: IPv4Address, file: BootFile | None
    ) -> tuple[DhcpMessage, BootFile | None]:
        options: dict[int, bytes] = {} if file is None else boot_options(file)
        if address != UNSPECIFIED:
            options[Option.SUBNET_MASK] = address_bytes(self._network.netmask)
            options[Option.LEASE_TIME] = math.ceil(self._pool.lease_s).to_bytes(4, "big")
        message = reply(request, kind, self._service.address, your_address=address, options=options)
        if file is None:
            return message, None
        return add_boot_file(message, file, self._service.address), file
