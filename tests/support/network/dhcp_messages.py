"""DHCP messages of boot firmware, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from sender.netboot.serve.dhcp_codec import (
    BROADCAST_FLAG,
    ETHERNET,
    UNSPECIFIED,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    address_bytes,
)

MAC = "52:54:00:99:00:01"
UUID_OPTION = b"\0" + bytes.fromhex("44454c4c4200104a8051b7c04f483732")
UUID = "4c4c4544-0042-4a10-8051-b7c04f483732"


def client_message(
    kind: MessageType = MessageType.DISCOVER,
    *,
    mac: str = MAC,
    architecture: int | None = 7,
    vendor_class: bytes = b"PXEClient:Arch:00007:UNDI:003016",
    server: str | None = None,
    requested: str | None = None,
    client_address: str = "0.0.0.0",
    relay_address: str = "0.0.0.0",
    seconds: int = 0,
    more: Mapping[int, bytes] | None = None,
) -> DhcpMessage:
    """Return a message as a booting machine sends it."""
    options: dict[int, bytes] = {Option.MESSAGE_TYPE: bytes([kind])}
    if vendor_class:
        options[Option.VENDOR_CLASS] = vendor_class
    if architecture is not None:
        options[Option.CLIENT_ARCHITECTURE] = architecture.to_bytes(2, "big")
    if server is not None:
        options[Option.SERVER_IDENTIFIER] = address_bytes(server)
    if requested is not None:
        options[Option.REQUESTED_ADDRESS] = address_bytes(requested)
    return DhcpMessage(
        operation=DhcpOperation.REQUEST,
        hardware_type=ETHERNET,
        hops=0,
        transaction_id=0x12345678,
        seconds=seconds,
        flags=BROADCAST_FLAG,
        client_address=IPv4Address(client_address),
        your_address=UNSPECIFIED,
        server_address=UNSPECIFIED,
        relay_address=IPv4Address(relay_address),
        hardware_address=bytes.fromhex(mac.replace(":", "")),
        server_name=b"",
        boot_file=b"",
        options={**options, **(more or {})},
    )


def ipxe_message(kind: MessageType = MessageType.DISCOVER, *, architecture: int = 7) -> DhcpMessage:
    """Return a message as iPXE sends it."""
    return client_message(
        kind,
        architecture=architecture,
        vendor_class=b"PXEClient:Arch:%05d:UNDI:003010" % architecture,
        more={Option.USER_CLASS: b"iPXE", Option.IPXE_ENCAPSULATED: bytes.fromhex("b10501af86100e")},
    )
