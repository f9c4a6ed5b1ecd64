"""Multicast groups: two casts in one group would corrupt each other's disks."""

from __future__ import annotations

import pytest

from protocol.errors import AddressInUseError
from sender.config.sections import GROUP_COUNT
from sender.daemon.jobs.multicast_groups import choose_group


def test_casts_never_share_a_group() -> None:
    taken: set[str] = set()
    for _ in range(GROUP_COUNT):
        group = choose_group("239.255.68.80", "1a2b3c4d", taken)
        assert group not in taken
        taken.add(group)
    with pytest.raises(AddressInUseError):
        choose_group("239.255.68.80", "1a2b3c4d", taken)


def test_a_cast_has_the_same_group_whichever_daemon_runs_it() -> None:
    assert choose_group("239.255.68.80", "1a2b3c4d", ()) == choose_group("239.255.68.80", "1a2b3c4d", ())
