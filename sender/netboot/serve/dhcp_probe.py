"""Search for DHCP servers on a network, by asking for an address that is never taken."""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Final

from protocol.errors import ProtocolError
from sender.netboot.serve.dhcp_codec import (
    BROADCAST,
    BROADCAST_FLAG,
    ETHERNET,
    UNSPECIFIED,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    decode_dhcp_untrusted,
    encode_dhcp,
)
from sender.netboot.serve.dhcp_service import open_dhcp_socket
from sender.netboot.serve.proxy_dhcp import CLIENT_PORT, SERVER_PORT

PROBE_S: Final = 4.0
"""DHCP servers that check an address with a ping before they offer it take one to three seconds."""
_REPEAT_S: Final = 1.5
_OFFERS_MAX: Final = 16


async def find_dhcp_servers(interface_name: str, timeout_s: float = PROBE_S) -> list[DhcpMessage]:
    """Return the offers of all DHCP servers on the network of an interface, one for each server.

    Raises:
        ConfigurationError: the client's port can't be bound.
    """
    transaction_id = secrets.randbits(32)
    discover = encode_dhcp(_discover(transaction_id))
    found: dict[str, DhcpMessage] = {}
    loop = asyncio.get_running_loop()
    with open_dhcp_socket(interface_name, CLIENT_PORT) as sock:
        stop = loop.time() + timeout_s
        repeat = loop.time()
        while (now := loop.time()) < stop and len(found) < _OFFERS_MAX:
            if now >= repeat:
                _broadcast(sock, discover)
                repeat = now + _REPEAT_S
            try:
                async with asyncio.timeout_at(min(repeat, stop)):
                    data = await loop.sock_recv(sock, 4096)
            except TimeoutError:
                continue
            offer = _offer_untrusted(data, transaction_id)
            if offer is not None:
                server = offer.address_option(Option.SERVER_IDENTIFIER)
                found.setdefault(str(server), offer)
    return list(found.values())


def _discover(transaction_id: int) -> DhcpMessage:
    mac = bytes([0x02]) + secrets.token_bytes(5)  # locally administered: no server has a reservation for it
    return DhcpMessage(
        DhcpOperation.REQUEST,
        ETHERNET,
        0,
        transaction_id,
        0,
        BROADCAST_FLAG,
        UNSPECIFIED,
        UNSPECIFIED,
        UNSPECIFIED,
        UNSPECIFIED,
        mac,
        b"",
        b"",
        {
            Option.MESSAGE_TYPE: bytes([MessageType.DISCOVER]),
            Option.PARAMETER_LIST: bytes(
                [Option.SUBNET_MASK, Option.TFTP_SERVER_NAME, Option.BOOT_FILE, Option.VENDOR_SPECIFIC]
            ),
            # As an x86-64 UEFI machine that boots: the offer then shows the boot file that such a machine would get.
            Option.VENDOR_CLASS: b"PXEClient:Arch:00007:UNDI:003016",
            Option.CLIENT_ARCHITECTURE: b"\0\7",
        },
    )


def _broadcast(sock: socket.socket, data: bytes) -> None:
    sock.sendto(data, (str(BROADCAST), SERVER_PORT))


def _offer_untrusted(data: bytes, transaction_id: int) -> DhcpMessage | None:
    """Return the answer to our question that offers an address; None for any other datagram."""
    try:
        message = decode_dhcp_untrusted(data)
    except ProtocolError:
        return None
    if (
        message.operation is not DhcpOperation.REPLY
        or message.transaction_id != transaction_id
        or message.message_type is not MessageType.OFFER
        or message.your_address == UNSPECIFIED
    ):
        return None
    return message
