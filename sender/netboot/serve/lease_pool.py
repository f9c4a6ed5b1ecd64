"""Addresses for the machines of an isolated network: a small pool of leases in memory. Pure: time is an argument.

An address is derived from the machine's MAC address where it is free, so a restart of the service changes no address.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection
from ipaddress import IPv4Address
from typing import Final

from protocol.errors import ConfigurationError

POOL_ADDRESSES_MAX: Final = 4096
"""More machines than that aren't in one broadcast domain."""
OFFER_S: Final = 60.0
"""Time in which a client must request an offered address."""
DECLINED_S: Final = 600.0
"""Time for which an address rests after a client found it in use."""


@dataclasses.dataclass(slots=True)
class _Lease:
    mac: str
    """Empty for a declined address."""
    expires: float


class LeasePool:
    """The leases of one network.

    Attributes:
        lease_s: length of a lease.
    """

    def __init__(
        self, first: IPv4Address, last: IPv4Address, *, reserved: Collection[IPv4Address], lease_s: float
    ) -> None:
        """Lease the addresses from ``first`` to ``last``.

        Args:
            first: first address.
            last: last address.
            reserved: addresses in between that are never leased, such as the server's own.
            lease_s: length of a lease.

        Raises:
            ConfigurationError: there is no address to lease, or there are too many.
        """
        count = int(last) - int(first) + 1
        if not 0 < count <= POOL_ADDRESSES_MAX:
            raise ConfigurationError(
                f"the pool {first}-{last} has {max(0, count)} addresses: give 1 to {POOL_ADDRESSES_MAX} with --pool"
            )
        self._addresses = [
            address for address in (first + index for index in range(count)) if address not in reserved
        ]
        if not self._addresses:
            raise ConfigurationError(
                f"the pool {first}-{last} has only this machine's address: enlarge --pool"
            )
        self.lease_s = lease_s
        self._leases: dict[IPv4Address, _Lease] = {}
        self._by_mac: dict[str, IPv4Address] = {}
        self._members = frozenset(self._addresses)

    def __contains__(self, address: IPv4Address) -> bool:
        return address in self._members

    def offer(self, mac: str, requested: IPv4Address | None, now: float) -> IPv4Address | None:
        """Reserve an address for a client for :data:`OFFER_S`; return None if all are in use."""
        address = self._choose(mac, requested, now)
        if address is not None:
            lease = self._leases.get(address)
            expires = now + OFFER_S
            self._assign(mac, address, max(expires, lease.expires) if lease and lease.mac == mac else expires)
        return address

    def commit(self, mac: str, address: IPv4Address, now: float) -> bool:
        """Lease ``address`` to a client that requests it; return False if the client can't have it."""
        if not self._is_free(address, mac, now):
            return False
        self._assign(mac, address, now + self.lease_s)
        return True

    def release(self, mac: str, address: IPv4Address) -> None:
        """End a lease."""
        lease = self._leases.get(address)
        if lease is not None and lease.mac == mac:
            del self._leases[address]
            del self._by_mac[mac]

    def decline(self, mac: str, address: IPv4Address, now: float) -> None:
        """Rest an address that its client found in use by another machine."""
        lease = self._leases.get(address)
        if lease is not None and lease.mac == mac:
            del self._by_mac[mac]
            self._leases[address] = _Lease("", now + DECLINED_S)

    def leased_count(self, now: float) -> int:
        """Return the number of addresses in use."""
        return sum(lease.expires > now for lease in self._leases.values())

    def _choose(self, mac: str, requested: IPv4Address | None, now: float) -> IPv4Address | None:
        start = zlib.crc32(mac.encode()) % len(self._addresses)
        candidates = (self._by_mac.get(mac), requested)
        for address in candidates:
            if address is not None and self._is_free(address, mac, now):
                return address
        ring = self._addresses[start:] + self._addresses[:start]
        # Addresses that nobody has had come first: an expired lease may still be in use by a sleeping machine.
        unused = (address for address in ring if address not in self._leases)
        free = (address for address in ring if self._is_free(address, mac, now))
        return next(unused, None) or next(free, None)

    def _is_free(self, address: IPv4Address, mac: str, now: float) -> bool:
        if address not in self._members:
            return False
        lease = self._leases.get(address)
        return lease is None or lease.mac == mac or lease.expires <= now

    def _assign(self, mac: str, address: IPv4Address, expires: float) -> None:
        before = self._leases.get(address)
        if before is not None and before.mac not in ("", mac):
            del self._by_mac[before.mac]
        held = self._by_mac.get(mac)
        if held is not None and held != address:
            del self._leases[held]
        self._leases[address] = _Lease(mac, expires)
        self._by_mac[mac] = address
