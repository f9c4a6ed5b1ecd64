"""Where a cast takes place: a multicast group of its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from protocol.errors import AddressInUseError
from sender.config.server_config import GROUP_COUNT


def choose_group(base: str, cast_id: str, taken: Collection[str]) -> str:
    """A group of its own for a cast: the same whichever daemon runs it, unless that one is taken.

    Args:
        base: the first of the groups.
        cast_id: eight hexadecimal digits.
        taken: groups of the other casts that run now, of all daemons that share a database.

    Raises:
        AddressInUseError: every group is taken.
    """
    first = ipaddress.ip_address(base)
    start = int(cast_id, 16) % GROUP_COUNT
    for step in range(GROUP_COUNT):
        group = first + (start + step) % GROUP_COUNT
        if group.is_multicast and str(group) not in taken:
            return str(group)
    raise AddressInUseError(
        f"all {GROUP_COUNT} multicast groups from {base} on are taken by casts that run now"
    )
