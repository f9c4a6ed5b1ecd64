"""Choose a multicast group of its own for each cast."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from protocol.errors import AddressInUseError
from sender.config.sections import GROUP_COUNT


def choose_group(base: str, cast_id: str, taken: Collection[str]) -> str:
    """Return a free group for a cast: the same one on every daemon, unless it is taken.

    Args:
        base: the first of the groups.
        cast_id: eight hexadecimal digits.
        taken: groups of the other running casts of all daemons that share the database.

    Raises:
        AddressInUseError: every group is taken.
    """
    first = ipaddress.ip_address(base)
    start = int(cast_id, 16) % GROUP_COUNT
    for step in range(GROUP_COUNT):
        group = first + (start + step) % GROUP_COUNT
        if group.is_multicast and str(group) not in taken:
            return str(group)
    raise AddressInUseError(f"all {GROUP_COUNT} multicast groups from {base} on are taken by running casts")
