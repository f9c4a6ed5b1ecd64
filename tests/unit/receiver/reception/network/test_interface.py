"""Lookup of the interface. Lost if these fail: an operator who mistypes it doesn't see the existing ones."""

from __future__ import annotations

import socket
from collections import namedtuple

import psutil
import pytest

from protocol.errors import InterfaceError
from receiver.reception.network.interface import find_interface

Address = namedtuple("Address", "family address")
State = namedtuple("State", "isup mtu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake a machine with interfaces in all states; only lo's name and index are real."""
    addresses = {
        "lo": [Address(socket.AF_INET, "127.0.0.1"), Address(socket.AF_INET6, "::1")],
        "eth0": [
            Address(socket.AF_INET, "192.0.2.7"),
            Address(socket.AF_INET, "192.0.2.8"),
            Address(socket.AF_INET6, "fe80::1%eth0"),
            Address(socket.AF_PACKET, "02:00:00:00:00:01"),
        ],
        "bare0": [Address(socket.AF_PACKET, "02:00:00:00:00:02")],
    }
    states = {
        "lo": State(True, 65536),
        "eth0": State(True, 9000),
        "bare0": State(True, 1500),
        "down0": State(False, 1500),
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(socket, "if_nametoindex", {"lo": 1, "eth0": 2, "bare0": 3, "down0": 4}.__getitem__)


@pytest.mark.usefixtures("machine")
def test_an_interface_for_ipv4_and_for_ipv6() -> None:
    ipv4 = find_interface("eth0", "239.255.68.67")
    assert (ipv4.name, ipv4.index, ipv4.address, ipv4.mtu_bytes) == ("eth0", 2, "192.0.2.7", 9000)
    assert find_interface("eth0", "ff12::d15c").address == "fe80::1"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("name", "group", "words"),
    [
        ("eth9", "239.255.68.67", [r"'eth9'", r"eth0 \(192\.0\.2\.7\)", r"lo \(127\.0\.0\.1\)", "bare0"]),
        ("down0", "239.255.68.67", ["down0 is down", "ip link set dev down0 up"]),
        ("bare0", "239.255.68.67", ["no IPv4 address", "ip address add"]),
        ("bare0", "ff12::d15c", ["no IPv6 address", "--group"]),
    ],
)
def test_a_refusal_names_the_mend(name: str, group: str, words: list[str]) -> None:
    with pytest.raises(InterfaceError) as caught:
        find_interface(name, group)
    for word in words:
        assert caught.match(word)


def test_this_machine_has_a_loopback_interface() -> None:
    interface = find_interface("lo", "239.255.68.67")
    assert interface.address == "127.0.0.1"
    assert interface.index == socket.if_nametoindex("lo")
