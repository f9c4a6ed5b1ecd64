from __future__ import annotations

from pathlib import Path

from tests.load.room import run_room


def test_every_change_of_a_rooms_machines_reaches_every_watcher(tmp_path: Path) -> None:
    load = run_room(tmp_path, machine_count=50, watcher_count=4, seconds=4, rate_bytes_per_s=4e6)
    assert load.complete_count == load.machine_count
    assert load.nacks, "the machines lost nothing: the test tests less than it says"
    assert all(len(delays) > load.machine_count for delays in load.delays_s.values())
    assert load.updates_lost == 0
    assert load.streams_broken == []
    assert load.scrapes
