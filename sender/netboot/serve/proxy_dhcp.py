"""ProxyDHCP (PXE 2.1, 2.2): replies that add a boot file and no address, beside the network's own DHCP server. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final

from sender.netboot.serve.boot_files import BootFile, BootFileTable, NetworkClient, ServiceAddress
from sender.netboot.serve.dhcp_codec import (
    BROADCAST_FLAG,
    UNSPECIFIED,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    address_bytes,
)

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
PROXY_PORT: Final = 4011
"""Port of the boot server, where PXE clients repeat their request."""

_USE_THIS_FILE: Final = bytes([6, 1, 8, 255])
"""PXE_DISCOVERY_CONTROL with bit 3: no discovery of other boot servers, take the file of this message."""
_ECHOED: Final = (Option.CLIENT_UUID, Option.RELAY_AGENT)
"""Options that a reply repeats: RFC 4578, 2.3 for the UUID; RFC 3046, 2.2 for the relay's."""


class ProxyDhcp:
    """The ProxyDHCP service of one network."""

    def __init__(self, service: ServiceAddress, files: BootFileTable) -> None:
        """Answer with boot files of ``files``, at the address ``service``."""
        self._service = service
        self._files = files

    def answer(self, request: DhcpMessage, port: int) -> tuple[DhcpMessage, BootFile] | None:
        """Return the reply to a client's message, with its boot file; None if it isn't for this service.

        Raises:
            UnsupportedClientError: there is no loader for this machine.
        """
        if request.operation is not DhcpOperation.REQUEST:
            return None
        match request.message_type:
            case MessageType.DISCOVER if port == SERVER_PORT:
                kind = MessageType.OFFER
            case MessageType.REQUEST | MessageType.INFORM if port == PROXY_PORT:
                kind = MessageType.ACK
            case MessageType.REQUEST if self._is_chosen(request):
                kind = MessageType.ACK
            case _:
                return None
        file = self._files.choose(request, self._service)
        if file is None:
            return None
        message = reply(request, kind, self._service.address, options=boot_options(file))
        return add_boot_file(message, file, self._service.address), file

    def _is_chosen(self, request: DhcpMessage) -> bool:
        """Return whether a request on port 67 names this server: all others are for the real one."""
        return request.address_option(Option.SERVER_IDENTIFIER) == self._service.address


def reply(
    request: DhcpMessage,
    kind: MessageType,
    server: IPv4Address,
    *,
    your_address: IPv4Address = UNSPECIFIED,
    options: Mapping[int, bytes],
) -> DhcpMessage:
    """Return a reply to ``request`` (RFC 2131, table 3)."""
    echoed: dict[int, bytes] = {code: request.options[code] for code in _ECHOED if code in request.options}
    return DhcpMessage(
        operation=DhcpOperation.REPLY,
        hardware_type=request.hardware_type,
        hops=0,
        transaction_id=request.transaction_id,
        seconds=0,
        # The client has no address yet: the reply is broadcast, whatever the client wished.
        flags=request.flags | BROADCAST_FLAG,
        client_address=request.client_address if kind is MessageType.ACK else UNSPECIFIED,
        your_address=your_address,
        server_address=UNSPECIFIED,
        relay_address=request.relay_address,
        hardware_address=request.hardware_address,
        server_name=b"",
        boot_file=b"",
        options={
            Option.MESSAGE_TYPE: bytes([kind]),
            Option.SERVER_IDENTIFIER: address_bytes(server),
            **options,
            **echoed,
        },
    )


def boot_options(file: BootFile) -> dict[int, bytes]:
    """Return the options of a reply with a boot file."""
    options: dict[int, bytes] = {Option.BOOT_FILE: file.name.encode()}
    if file.client is NetworkClient.HTTP:
        options[Option.VENDOR_CLASS] = b"HTTPClient"
    else:
        options[Option.VENDOR_CLASS] = b"PXEClient"
        options[Option.VENDOR_SPECIFIC] = _USE_THIS_FILE
    return options


def add_boot_file(message: DhcpMessage, file: BootFile, server: IPv4Address) -> DhcpMessage:
    """Return ``message`` with the boot file in its header, too.

    Debian's shim reads the header only (its netboot.c), old boot ROMs as well.
    """
    return dataclasses.replace(message, server_address=server, boot_file=file.name.encode())
