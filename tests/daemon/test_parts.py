"""The daemon's rules that need neither a network nor a database."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import RATE_BYTES_PER_S_MIN
from protocol.errors import AddressInUseError, ConfigurationError
from sender.config.sections import GROUP_COUNT
from sender.daemon.jobs.multicast_groups import choose_group
from sender.daemon.jobs.rate_share import share_rate, wish_bytes_per_s
from sender.daemon.leases import BeatWatch, StateDirectory
from sender.store.repositories.leases import LEASE_STALE_S

CEILING = 100e6
WISHES = st.lists(st.floats(0, 1e9) | st.just(math.inf), max_size=16)


@given(WISHES)
def test_casts_together_never_get_more_than_the_ceiling(wishes: list[float]) -> None:
    shares = share_rate(CEILING, wishes)
    assert len(shares) == len(wishes)
    assert sum(shares) <= CEILING + 1 + len(wishes) * RATE_BYTES_PER_S_MIN


@given(WISHES.filter(bool))
def test_nobody_gets_more_than_another_that_wants_it_too(wishes: list[float]) -> None:
    shares = share_rate(CEILING, wishes)
    hungry = [share for share, wish in zip(shares, wishes, strict=True) if share < wish]
    if hungry:
        assert max(hungry) == pytest.approx(min(hungry), abs=RATE_BYTES_PER_S_MIN)
        assert max(shares) <= max(hungry) + RATE_BYTES_PER_S_MIN


def test_what_one_cast_cannot_use_goes_to_the_other() -> None:
    slow = wish_bytes_per_s(8e6, held_by_ceiling=False)
    shares = share_rate(CEILING, [slow, wish_bytes_per_s(1e6, held_by_ceiling=True)])
    assert shares == [pytest.approx(10e6), pytest.approx(90e6)]


def test_a_daemon_that_beats_keeps_its_cast_and_one_that_stopped_loses_it() -> None:
    watch = BeatWatch()
    for now in range(20):
        stale = watch.look({"a": ("alive", now), "b": ("dead", 7)}, float(now))
        assert [cast_id for cast_id, _, _ in stale] == (["b"] if now >= LEASE_STALE_S else [])


def test_an_outage_of_the_database_takes_no_cast_from_a_daemon_that_lives() -> None:
    watch = BeatWatch()
    assert watch.look({"a": ("alive", 7)}, 0.0) == []
    watch.reset()
    assert watch.look({"a": ("alive", 7)}, 100.0) == []
    assert watch.look({"a": ("alive", 8)}, 102.0) == []
    assert watch.look({"a": ("alive", 8)}, 102.0 + LEASE_STALE_S) == [("a", "alive", 8)]


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


def test_two_daemons_never_share_a_state_directory(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "state") as first:
        with pytest.raises(ConfigurationError, match="another diskcast daemon"):
            StateDirectory(tmp_path / "state")
        owner = first.owner("alpha")
    with StateDirectory(tmp_path / "state") as second:
        next_run = second.owner("alpha")
    assert next_run.was_me(str(owner))
    assert not next_run.was_me(str(next_run))
    assert not next_run.was_me("beta/00000000/11111111")
