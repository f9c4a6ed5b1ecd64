"""DHCP on an isolated network: a failure would give two machines one address, or none to a room."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigurationError
from sender.netboot.medium import Loader
from sender.netboot.serve.boot_files import BootFileTable, ServiceAddress
from sender.netboot.serve.dhcp_codec import UNSPECIFIED, DhcpMessage, MessageType, Option
from sender.netboot.serve.isolated_dhcp import LEASE_S, IsolatedDhcp
from sender.netboot.serve.lease_pool import DECLINED_S, OFFER_S, LeasePool
from sender.netboot.serve.proxy_dhcp import SERVER_PORT
from tests.support.network.dhcp_messages import client_message

SERVER = IPv4Address("192.168.7.1")
NETWORK = IPv4Network("192.168.7.0/24")
FIRST, LAST = IPv4Address("192.168.7.100"), IPv4Address("192.168.7.103")


def pool(first: IPv4Address = FIRST, last: IPv4Address = LAST) -> LeasePool:
    return LeasePool(first, last, reserved={SERVER}, lease_s=LEASE_S)


def service(leases: LeasePool | None = None) -> IsolatedDhcp:
    return IsolatedDhcp(ServiceAddress(SERVER), NETWORK, BootFileTable(frozenset(Loader)), leases or pool())


def answer(dhcp: IsolatedDhcp, request: DhcpMessage, now: float = 0.0) -> DhcpMessage:
    answered = dhcp.answer(request, SERVER_PORT, now)
    assert answered is not None
    return answered[0]


def lease(dhcp: IsolatedDhcp, mac: str, now: float = 0.0) -> IPv4Address:
    offer = answer(dhcp, client_message(mac=mac), now)
    wanted = str(offer.your_address)
    ack = answer(
        dhcp, client_message(MessageType.REQUEST, mac=mac, server=str(SERVER), requested=wanted), now
    )
    assert ack.message_type is MessageType.ACK
    assert ack.your_address == offer.your_address
    return ack.your_address


def test_a_machine_gets_an_address_and_its_boot_file() -> None:
    dhcp = service()
    address = lease(dhcp, "52:54:00:00:00:01")
    assert FIRST <= address <= LAST
    offer = answer(dhcp, client_message(mac="52:54:00:00:00:01"))
    assert offer.options[Option.SUBNET_MASK] == bytes([255, 255, 255, 0])
    assert offer.options[Option.LEASE_TIME] == int(LEASE_S).to_bytes(4, "big")
    assert offer.boot_file_name == "snponly.efi"
    assert offer.server_address == SERVER


def test_a_client_that_does_not_boot_gets_an_address_only() -> None:
    offer = answer(service(), client_message(vendor_class=b"", architecture=None))
    assert offer.your_address != UNSPECIFIED
    assert Option.BOOT_FILE not in offer.options
    assert Option.VENDOR_CLASS not in offer.options


def test_addresses_survive_a_restart_of_the_service() -> None:
    macs = ["52:54:00:00:00:01", "52:54:00:00:00:02"]
    assert [lease(service(), mac) for mac in macs] == [lease(service(), mac) for mac in macs]


def test_a_full_pool_answers_nobody_until_a_lease_expires() -> None:
    dhcp = service()
    for index in range(4):
        lease(dhcp, f"52:54:00:00:01:{index:02x}")
    newcomer = client_message(mac="52:54:00:00:02:00")
    assert dhcp.answer(newcomer, SERVER_PORT, 1.0) is None
    assert dhcp.answer(newcomer, SERVER_PORT, LEASE_S + 1.0) is not None


def test_an_offer_that_is_not_taken_becomes_free() -> None:
    dhcp = service(pool(FIRST, FIRST))
    assert answer(dhcp, client_message(mac="52:54:00:00:00:01")).your_address == FIRST
    other = client_message(mac="52:54:00:00:00:02")
    assert dhcp.answer(other, SERVER_PORT, OFFER_S / 2) is None
    assert answer(dhcp, other, OFFER_S + 1.0).your_address == FIRST


def test_an_address_of_another_network_is_refused() -> None:
    """Otherwise a laptop from elsewhere would keep its old address here."""
    request = client_message(MessageType.REQUEST, requested="10.1.2.3")
    assert answer(service(), request).message_type is MessageType.NAK


def test_a_choice_of_another_server_is_not_answered() -> None:
    request = client_message(MessageType.REQUEST, server="192.168.7.9", requested=str(FIRST))
    assert service().answer(request, SERVER_PORT, 0.0) is None


def test_a_declined_address_rests() -> None:
    leases = pool(FIRST, FIRST)
    dhcp = service(leases)
    mac = "52:54:00:00:00:01"
    lease(dhcp, mac)
    decline = client_message(MessageType.DECLINE, mac=mac, requested=str(FIRST))
    assert dhcp.answer(decline, SERVER_PORT, 0.0) is None
    assert dhcp.answer(client_message(mac=mac), SERVER_PORT, 1.0) is None
    assert answer(dhcp, client_message(mac=mac), DECLINED_S + 1.0).your_address == FIRST


def test_a_released_address_is_free_at_once() -> None:
    dhcp = service(pool(FIRST, FIRST))
    lease(dhcp, "52:54:00:00:00:01")
    release = client_message(MessageType.RELEASE, mac="52:54:00:00:00:01", client_address=str(FIRST))
    assert dhcp.answer(release, SERVER_PORT, 0.0) is None
    assert lease(dhcp, "52:54:00:00:00:02") == FIRST


@pytest.mark.parametrize(("first", "last"), [(LAST, FIRST), (FIRST, FIRST + 5000), (SERVER, SERVER)])
def test_a_useless_pool_is_refused(first: IPv4Address, last: IPv4Address) -> None:
    with pytest.raises(ConfigurationError, match="--pool"):
        pool(first, last)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["offer", "commit", "release", "decline"]),
            st.integers(0, 7),
            st.integers(-1, 5),
            st.floats(0, 2000),
        ),
        max_size=60,
    )
)
def test_no_two_machines_ever_hold_one_address(steps: list[tuple[str, int, int, float]]) -> None:
    leases = pool()
    now = 0.0
    held: dict[IPv4Address, tuple[str, float]] = {}
    for kind, machine, offset, delay_s in steps:
        now += delay_s
        mac, address = f"m{machine}", FIRST + offset
        match kind:
            case "offer":
                offered = leases.offer(mac, address, now)
                if offered is not None:
                    assert offered in leases
                    holder, expires = held.get(offered, (mac, 0.0))
                    assert holder == mac or expires <= now
            case "commit":
                if leases.commit(mac, address, now):
                    holder, expires = held.get(address, (mac, 0.0))
                    assert holder == mac or expires <= now
                    held = {own: entry for own, entry in held.items() if entry[0] != mac}
                    held[address] = (mac, now + LEASE_S)
            case "release":
                leases.release(mac, address)
                if held.get(address, ("", 0.0))[0] == mac:
                    del held[address]
            case "decline":
                leases.decline(mac, address, now)
                if held.get(address, ("", 0.0))[0] == mac:
                    del held[address]
