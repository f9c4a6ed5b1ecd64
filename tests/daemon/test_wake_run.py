"""Waves of magic packets and their results. Lost if these fail: a tripped fuse, or machines that stay off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sender.daemon.waking.magic_packet import MAGIC_PACKET_BYTES, magic_packet
from sender.daemon.waking.wake_run import (
    AWAKE_WITHIN_S,
    OUTAGE_AFTER_S,
    REPEAT_INTERVAL_S,
    REPEATS,
    WakeRun,
    WavePace,
    split_waves,
    with_outage,
)
from sender.labels import WAKE_REASONS
from sender.store.records.machines import Machine
from sender.store.records.wakes import Wake, WakeState
from tests.store.samples import machine

AT = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
PAUSE_S = 5.0


def room(count: int) -> list[Machine]:
    """Machines pc1, pc2 … with one address each, in the order of their seats."""
    return [
        machine(
            f"pc{index}",
            machine_id=f"m{index}",
            macs=(f"52:54:00:00:00:{index:02x}",),
            position=f"seat {index}",
        )
        for index in range(1, count + 1)
    ]


def wake(**fields: object) -> Wake:
    values: dict[str, object] = {
        "wake_id": "5e6f7a8b", "room_id": "lab", "cast_id": None, "created_at": AT, "created_by": "local",
        "wave_size": 2, "pause_s": PAUSE_S, "machines": (),
    }  # fmt: skip
    return Wake(**(values | fields))  # type: ignore[arg-type]


def states(run: WakeRun) -> dict[str, WakeState]:
    return {each.name: each.state for each in run.record.machines}


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


def test_a_packet_is_six_bytes_of_ones_and_sixteen_times_the_address() -> None:
    packet = magic_packet("52:54:00:12:34:ab")
    assert packet == bytes.fromhex("ffffffffffff" + 16 * "5254001234ab")
    assert len(packet) == MAGIC_PACKET_BYTES == 102


@pytest.mark.parametrize("mac", ["52:54:00:12:34", "52:54:00:12:34:ab:cd", "pc07"])
def test_only_a_hardware_address_makes_a_packet(mac: str) -> None:
    with pytest.raises(ValueError, match=r"hardware address|hexadecimal"):
        magic_packet(mac)


def test_neighbours_are_in_different_waves() -> None:
    waves = split_waves(list(reversed(room(30))), 8)
    assert [len(wave) for wave in waves] == [8, 8, 7, 7]
    assert [each.name for each in waves[0]] == ["pc1", "pc5", "pc9", "pc13", "pc17", "pc21", "pc25", "pc29"]
    assert split_waves([], 8) == ()


def test_waves_follow_each_other_and_each_packet_is_repeated() -> None:
    run = WakeRun(wake(), room(4), (), now=100.0)
    sent: list[tuple[float, str]] = []
    for tick in range(100):
        seconds = tick * 0.25
        sent += [(seconds, mac) for mac in run.take_due(100.0 + seconds, after(seconds))]
    assert {mac for seconds, mac in sent if seconds == 0} == {"52:54:00:00:00:01", "52:54:00:00:00:03"}
    assert {mac for seconds, mac in sent if seconds == PAUSE_S} == {"52:54:00:00:00:02", "52:54:00:00:00:04"}
    for each in room(4):
        own = [seconds for seconds, mac in sent if mac in each.macs]
        assert [seconds - own[0] for seconds in own] == [
            index * REPEAT_INTERVAL_S for index in range(REPEATS)
        ]


def test_a_machine_that_shows_up_after_its_packet_woke() -> None:
    run = WakeRun(wake(wave_size=1), room(2), (), now=0.0)
    run.take_due(0.0, AT)
    assert states(run) == {"pc1": WakeState.CALLED, "pc2": WakeState.QUEUED}
    assert not run.note_awake({"m1": after(-1), "m2": after(1)}), (
        "an older sign of life, and one before the packet"
    )
    assert run.note_awake({"m1": after(40)})
    [first, second] = run.record.machines
    assert (first.state, first.called_at, first.awake_at, first.wave) == (WakeState.WOKE, AT, after(40), 1)
    assert (second.state, second.wave) == (WakeState.QUEUED, 2)
    assert run.take_due(1.0, after(1)) == [], "no more packets to a machine that is awake"


def test_a_silent_machine_is_given_up_after_three_minutes() -> None:
    run = WakeRun(wake(), room(1), (), now=0.0)
    for second in range(5):
        run.take_due(float(second), after(second))
    run.expire(after(AWAKE_WITHIN_S - 1))
    assert not run.ended
    run.expire(after(AWAKE_WITHIN_S))
    assert run.ended
    assert states(run) == {"pc1": WakeState.SILENT}
    assert run.record.ended_at == after(AWAKE_WITHIN_S)
    assert f"{AWAKE_WITHIN_S / 60:.0f} minutes" in WAKE_REASONS[WakeState.SILENT]


def test_a_wake_ends_early_when_all_machines_are_awake() -> None:
    run = WakeRun(wake(), room(2), (), now=0.0)
    for second in range(5):
        run.take_due(float(second), after(second))
    run.note_awake({"m1": after(30), "m2": after(31)})
    run.expire(after(31))
    assert run.record.ended_at == after(31)


def test_a_machine_that_was_on_gets_its_packets_all_the_same() -> None:
    run = WakeRun(wake(), room(1), ("m1",), now=0.0)
    assert run.take_due(0.0, AT) == ["52:54:00:00:00:01"], "its plug may have been pulled seconds ago"
    assert states(run) == {"pc1": WakeState.WAS_ON}


def test_every_address_of_a_machine_gets_a_packet() -> None:
    two = machine("pc1", machine_id="m1", macs=("52:54:00:00:00:01", "52:54:00:00:01:01"))
    run = WakeRun(wake(), [two], (), now=0.0)
    assert run.take_due(0.0, AT) == list(two.macs)


def test_a_machine_without_an_address_cannot_be_woken() -> None:
    run = WakeRun(wake(), [machine("pc9", machine_id="m9")], (), now=0.0)
    run.expire(AT)
    assert states(run) == {"pc9": WakeState.UNKNOWN_ADDRESS}
    assert run.ended


def test_the_record_of_a_stopped_daemon_ends_with_the_reason() -> None:
    run = WakeRun(wake(), room(3), (), now=0.0)
    record = run.record
    over_s = 2 * PAUSE_S + AWAKE_WITHIN_S + OUTAGE_AFTER_S
    assert with_outage(record, after(over_s - 1)).ended_at is None
    assert "was stopped" in with_outage(record, after(over_s)).problem


def test_the_last_wave_starts_after_the_pauses() -> None:
    assert WavePace(8, 5.0).duration_s(30) == 15.0
    assert WavePace(8, 5.0).duration_s(8) == WavePace(8, 5.0).duration_s(0) == 0.0
