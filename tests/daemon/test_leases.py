"""Leases: a daemon keeps its casts while it renews them, and a state directory has one daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.daemon.leases import BeatWatch, StateDirectory
from sender.store.repositories.leases import IMAGE_GRACE_S, LEASE_STALE_S


def test_a_daemon_that_renews_keeps_its_cast_and_a_dead_one_loses_it() -> None:
    watch = BeatWatch()
    for now in range(20):
        stale = watch.observe({"a": ("alive", now), "b": ("dead", 7)}, float(now))
        assert [cast_id for cast_id, _, _ in stale] == (["b"] if now >= LEASE_STALE_S else [])


def test_a_dead_daemons_cast_goes_to_a_daemon_that_has_its_image_first() -> None:
    """Otherwise the cast fails at a daemon that can't send it, while another one could."""
    watch = BeatWatch()
    for now in range(20):
        stale = watch.observe({"a": ("dead", 7)}, float(now), {"a"})
        assert bool(stale) == (now >= LEASE_STALE_S + IMAGE_GRACE_S)


def test_an_outage_of_the_database_takes_no_cast_from_a_live_daemon() -> None:
    watch = BeatWatch()
    assert watch.observe({"a": ("alive", 7)}, 0.0) == []
    watch.reset()
    assert watch.observe({"a": ("alive", 7)}, 100.0) == []
    assert watch.observe({"a": ("alive", 8)}, 102.0) == []
    assert watch.observe({"a": ("alive", 8)}, 102.0 + LEASE_STALE_S) == [("a", "alive", 8)]


def test_two_daemons_never_share_a_state_directory(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "state") as first:
        with pytest.raises(ConfigurationError, match="another diskcast daemon"):
            StateDirectory(tmp_path / "state")
        owner = first.owner("alpha")
    with StateDirectory(tmp_path / "state") as second:
        next_run = second.owner("alpha")
    assert next_run.is_earlier_run(str(owner))
    assert not next_run.is_earlier_run(str(next_run))
    assert not next_run.is_earlier_run("beta/00000000/11111111")
