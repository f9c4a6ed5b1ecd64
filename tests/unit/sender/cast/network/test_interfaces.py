"""Interfaces and addresses: if these failed, a cast would go nowhere, or an error wouldn't show its fix."""

from __future__ import annotations

import ipaddress

import pytest

from protocol.constants import SOURCE_SYMBOLS_MAX, SYMBOL_BYTES_MAX
from protocol.errors import ConfigurationError, InterfaceError
from sender.addresses import parse_endpoint, parse_group
from sender.cast.network.interfaces import (
    MulticastInterface,
    choose_symbol_bytes,
    find_interface,
    symbol_bytes_for,
)
from sender.cast.open_cast import derive_cast_id

LO_ADDRESS = ipaddress.ip_address("127.0.0.1")


def interface(mtu_bytes: int = 1500, *addresses: str) -> MulticastInterface:
    return MulticastInterface("eth7", 7, True, mtu_bytes, tuple(map(ipaddress.ip_address, addresses)))


def test_loopback_is_found_with_its_address_and_index() -> None:
    found = find_interface("lo")
    assert found.up
    assert found.index > 0
    assert found.address_for(parse_group("239.255.68.67")) == LO_ADDRESS


def test_the_error_of_an_unknown_interface_lists_the_usable_ones() -> None:
    with pytest.raises(
        InterfaceError, match=r"no network interface 'eth99'.*--interface: .*lo \(127\.0\.0\.1\)"
    ):
        find_interface("eth99")


@pytest.mark.parametrize(
    ("mtu_bytes", "ip_version", "symbol_bytes"),
    [
        (1500, 4, 1440),
        (1500, 6, 1420),
        (1400, 4, 1340),
        (9000, 4, 8928),
        (9000, 6, 8896),
        (2048, 4, 1984),
        (65536, 4, SYMBOL_BYTES_MAX),
        (124, 4, 64),
    ],
)
def test_the_symbol_fills_the_mtu_and_above_ethernet_is_aligned_for_the_fec_kernels(
    mtu_bytes: int, ip_version: int, symbol_bytes: int
) -> None:
    assert symbol_bytes_for(interface(mtu_bytes), ip_version) == symbol_bytes


def test_the_default_block_fits_the_default_symbol() -> None:
    assert SOURCE_SYMBOLS_MAX * symbol_bytes_for(interface(1500), 4) >= 256 << 10


def test_the_error_of_a_too_small_mtu_shows_the_command_that_fixes_it() -> None:
    with pytest.raises(InterfaceError, match="ip link set eth7 mtu 1500"):
        symbol_bytes_for(interface(123), 4)


def test_the_error_of_a_symbol_size_beyond_the_mtu_shows_the_range() -> None:
    assert choose_symbol_bytes(interface(1500), 4, 1000) == 1000
    with pytest.raises(ConfigurationError, match="from 64 to 1440"):
        choose_symbol_bytes(interface(1500), 4, 1441)


def test_a_global_address_is_preferred_to_a_link_local_one() -> None:
    both = interface(1500, "fe80::1", "fd00::7", "10.0.0.1")
    assert str(both.address_for(parse_group("ff12::d15c"))) == "fd00::7"
    assert str(both.address_for(parse_group("239.1.1.1"))) == "10.0.0.1"


def test_an_interface_without_an_address_of_the_groups_family_is_refused() -> None:
    with pytest.raises(InterfaceError, match=r"no IPv6 address.*ip address add"):
        interface(1500, "10.0.0.1").address_for(parse_group("ff12::d15c"))


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1", "all-hosts", "", "239.1.1"])
def test_the_error_of_a_group_that_is_not_multicast_shows_a_valid_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"239\.255\.68\.67"):
        parse_group(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":7500", None, 7500),
        ("10.0.0.1:7500", "10.0.0.1", 7500),
        ("10.0.0.1", "10.0.0.1", 7411),
        ("[fd00::1]:7500", "fd00::1", 7500),
        ("[fd00::1]", "fd00::1", 7411),
        (":0", None, 0),
    ],
)
def test_an_endpoint_has_host_and_port_or_either(text: str, host: str | None, port: int) -> None:
    address, found_port = parse_endpoint(text, 7411)
    assert (None if address is None else str(address), found_port) == (host, port)


@pytest.mark.parametrize("text", ["host:7411", "10.0.0.1:http", ":70000", "10.0.0.1:-1", "[fd00::1]x:1"])
def test_the_error_of_an_invalid_endpoint_shows_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        parse_endpoint(text, 7411)


def test_the_cast_id_depends_on_image_and_addresses_only() -> None:
    image_id = bytes(32)
    group = parse_group("239.255.68.67")
    first = derive_cast_id(image_id, group, 7410, LO_ADDRESS)
    assert first == derive_cast_id(image_id, group, 7410, LO_ADDRESS)
    others = {
        derive_cast_id(bytes(31) + b"x", group, 7410, LO_ADDRESS),
        derive_cast_id(image_id, parse_group("239.255.68.68"), 7410, LO_ADDRESS),
        derive_cast_id(image_id, group, 7411, LO_ADDRESS),
        derive_cast_id(image_id, group, 7410, ipaddress.ip_address("127.0.0.2")),
    }
    assert len(others) == 4
    assert first not in others
