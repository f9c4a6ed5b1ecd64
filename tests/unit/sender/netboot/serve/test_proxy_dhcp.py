"""ProxyDHCP: a failure would leave machines at "no boot file", or disturb the network's own DHCP server."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address

import pytest

from sender.netboot.medium import Loader
from sender.netboot.serve.boot_files import BootFileTable, ServiceAddress, UnsupportedClientError
from sender.netboot.serve.dhcp_codec import (
    BROADCAST_FLAG,
    UNSPECIFIED,
    DhcpOperation,
    MessageType,
    Option,
    decode_dhcp_untrusted,
    encode_dhcp,
)
from sender.netboot.serve.proxy_dhcp import PROXY_PORT, SERVER_PORT, ProxyDhcp
from sender.store.records.boots import BootFirmware
from tests.support.network.dhcp_messages import UUID_OPTION, client_message, ipxe_message

SERVICE = ServiceAddress(IPv4Address("10.99.0.2"))
ALL = BootFileTable(frozenset(Loader))
SECURE = dataclasses.replace(ALL, secure_boot=True)
HTTP_CLASS = b"HTTPClient:Arch:00016:UNDI:003001"


def proxy(files: BootFileTable = ALL) -> ProxyDhcp:
    return ProxyDhcp(SERVICE, files)


@pytest.mark.parametrize(
    ("architecture", "vendor_class", "files", "expected", "firmware"),
    [
        (0, b"PXEClient:Arch:00000:UNDI:002001", ALL, "undionly.kpxe", BootFirmware.BIOS),
        (7, b"PXEClient:Arch:00007:UNDI:003016", ALL, "snponly.efi", BootFirmware.UEFI),
        (9, b"PXEClient:Arch:00009:UNDI:003016", ALL, "snponly.efi", BootFirmware.UEFI),
        (7, b"PXEClient:Arch:00007:UNDI:003016", SECURE, "shimx64.efi", BootFirmware.SECURE),
        (0, b"PXEClient:Arch:00000:UNDI:002001", SECURE, "undionly.kpxe", BootFirmware.BIOS),
        (11, b"PXEClient:Arch:00011:UNDI:003000", ALL, "snponly-arm64.efi", BootFirmware.UEFI),
        (16, HTTP_CLASS, ALL, "http://10.99.0.2:8069/snponly.efi", BootFirmware.UEFI_HTTP),
        (16, HTTP_CLASS, SECURE, "http://10.99.0.2:8069/shimx64.efi", BootFirmware.UEFI_HTTP),
    ],
)
def test_each_firmware_gets_its_loader(
    architecture: int, vendor_class: bytes, files: BootFileTable, expected: str, firmware: BootFirmware
) -> None:
    request = client_message(architecture=architecture, vendor_class=vendor_class)
    answered = proxy(files).answer(request, SERVER_PORT)
    assert answered is not None
    offer, file = answered
    assert (file.name, file.firmware) == (expected, firmware)
    assert offer.boot_file == offer.options[Option.BOOT_FILE] == expected.encode()
    assert offer.options[Option.VENDOR_CLASS] == vendor_class[:10].rstrip(b":")


@pytest.mark.parametrize("architecture", [0, 7])
def test_ipxe_gets_the_boot_script_and_never_itself(architecture: int) -> None:
    """A loader that loads itself would loop for ever."""
    answered = proxy(SECURE).answer(ipxe_message(architecture=architecture), SERVER_PORT)
    assert answered is not None
    assert answered[0].boot_file_name == "http://10.99.0.2:8069/boot.ipxe"


def test_an_offer_leaves_the_address_to_the_other_server() -> None:
    request = client_message(more={Option.CLIENT_UUID: UUID_OPTION, Option.RELAY_AGENT: b"\x01\x02ab"})
    answered = proxy().answer(request, SERVER_PORT)
    assert answered is not None
    offer = decode_dhcp_untrusted(encode_dhcp(answered[0]))
    assert offer.operation is DhcpOperation.REPLY
    assert offer.message_type is MessageType.OFFER
    assert offer.your_address == UNSPECIFIED
    assert offer.server_address == SERVICE.address
    assert offer.flags & BROADCAST_FLAG
    assert offer.transaction_id == request.transaction_id
    assert not {Option.LEASE_TIME, Option.SUBNET_MASK} & offer.options.keys()
    assert offer.options[Option.VENDOR_SPECIFIC] == bytes([6, 1, 8, 255])
    assert offer.options[Option.CLIENT_UUID] == UUID_OPTION
    assert offer.options[Option.RELAY_AGENT] == b"\x01\x02ab"


def test_a_request_to_the_boot_server_gets_an_acknowledgement() -> None:
    request = client_message(MessageType.REQUEST, client_address="10.99.0.101")
    answered = proxy().answer(request, PROXY_PORT)
    assert answered is not None
    assert answered[0].message_type is MessageType.ACK
    assert answered[0].client_address == IPv4Address("10.99.0.101")


@pytest.mark.parametrize(
    ("request_", "port"),
    [
        (client_message(MessageType.REQUEST, server="10.99.0.1"), SERVER_PORT),
        (client_message(MessageType.REQUEST), SERVER_PORT),
        (client_message(MessageType.RELEASE), SERVER_PORT),
        (client_message(vendor_class=b"MSFT 5.0", architecture=None), SERVER_PORT),
        (client_message(vendor_class=b"", architecture=None), SERVER_PORT),
        (client_message(), PROXY_PORT),
        (dataclasses.replace(client_message(), operation=DhcpOperation.REPLY), SERVER_PORT),
    ],
    ids=["other server's", "renewal", "release", "Windows", "Linux", "discover at 4011", "reply"],
)
def test_everything_else_is_the_other_servers(request_, port: int) -> None:  # type: ignore[no-untyped-def]
    assert proxy().answer(request_, port) is None


def test_a_machine_without_a_loader_is_named_with_the_cause() -> None:
    with pytest.raises(UnsupportedClientError, match="architecture 6"):
        proxy().answer(client_message(architecture=6), SERVER_PORT)
    with pytest.raises(UnsupportedClientError, match=r"no loaders/shimx64\.efi"):
        proxy(BootFileTable(frozenset({Loader.UEFI}), secure_boot=True)).answer(client_message(), SERVER_PORT)
