"""The sender's demand: symbols sent twice without need cost the whole room, missing ones hang it."""

from __future__ import annotations

import math

import numpy as np

from protocol.sending.transmission.demand import Demand, SegmentList
from protocol.wire.messages import FLAG_REPAIR


def _plan(
    demand: Demand, sequence: int = 0, room: int = 1000, parity: float = 0.0, depth: int = 1
) -> tuple[list[tuple[int, ...]], int]:
    segments = SegmentList(room)
    sequence = demand.plan_repairs(segments, sequence, 0.0)
    sequence = demand.plan_pass(segments, sequence, lambda k: math.ceil(k * parity), depth)
    rows = [
        (int(s["flags"]), int(s["pass_index"]), int(s["block"]), int(s["esi"]), int(s["count"]))
        for s in segments.array()
    ]
    return rows, sequence


def _demand(*k: int) -> Demand:
    return Demand(1, np.array(k, np.uint8))


def test_a_pass_sends_each_stored_block_once_in_order() -> None:
    demand = _demand(3, 0, 5, 2)
    demand.want(None)
    rows, sequence = _plan(demand)
    assert rows == [(0, 0, 0, 0, 3), (0, 0, 2, 0, 5), (0, 0, 3, 0, 2)]
    assert sequence == 10
    assert demand.idle
    assert _plan(demand, sequence)[0] == []


def test_a_block_continues_in_the_next_plan() -> None:
    demand = _demand(5)
    demand.want(None)
    assert _plan(demand, 0, room=3)[0] == [(0, 0, 0, 0, 3)]
    assert not demand.idle
    assert _plan(demand, 3, room=9)[0] == [(0, 0, 0, 3, 2)]
    assert demand.idle


def test_parity_follows_its_block() -> None:
    demand = _demand(10)
    demand.want(None)
    assert _plan(demand, parity=0.15)[0] == [(0, 0, 0, 0, 12)]
    assert (demand.sent_source_count, demand.sent_parity_count) == (10, 2)


def test_repairs_come_first_with_fresh_symbols_and_the_largest_deficit_counts() -> None:
    demand = _demand(10, 10, 10)
    demand.want(None)
    _, sequence = _plan(demand, room=20)
    demand.nack([(0, 2, 2)], sequence)
    demand.nack([(1, 1, 4)], sequence)
    rows, sequence = _plan(demand, sequence)
    assert rows == [(FLAG_REPAIR, 0, 0, 10, 2), (FLAG_REPAIR, 0, 1, 10, 4), (0, 0, 2, 0, 10)]
    demand.nack([(0, 1, 1)], sequence)
    assert _plan(demand, sequence)[0] == [(FLAG_REPAIR, 0, 0, 12, 1)]


def test_a_nack_written_before_the_repair_was_heard_is_stale() -> None:
    demand = _demand(10)
    demand.want(None)
    _, sequence = _plan(demand)
    assert demand.nack([(0, 1, 2)], sequence).block_count == 1
    _, later = _plan(demand, sequence)
    assert demand.nack([(0, 1, 2)], sequence).block_count == 0
    assert demand.nack([(0, 1, 2)], later).block_count == 1


FAR = 5 << 29
"""More numbers than serial arithmetic can order: symbols of an image of 4 TB."""


def test_a_block_sent_terabytes_ago_is_still_repaired() -> None:
    """A sender that has sent everything sends no further numbers: the NACK would look old for ever."""
    demand = _demand(10, 10)
    demand.want(np.array([True, False]))
    _plan(demand, 2**32 - 5)
    demand.want(np.array([False, True]))
    _, sequence = _plan(demand, FAR)
    assert demand.nack([(0, 1, 3)], sequence).block_count == 1
    assert demand.nack([(1, 1, 3)], FAR).block_count == 0, "written before its latest symbols were heard"
    assert _plan(demand, sequence)[0] == [(FLAG_REPAIR, 0, 0, 10, 3)]


def test_a_receiver_that_joins_terabytes_later_gets_the_first_blocks() -> None:
    demand = _demand(10, 10)
    demand.want(np.array([True, False]))
    _plan(demand)
    demand.want(np.array([False, True]))
    _, sequence = _plan(demand, FAR)
    demand.want(None, heard_sequence=FAR + 2)
    assert _plan(demand, sequence)[0] == [(0, 1, 0, 0, 10)]


def test_blocks_that_the_pass_will_send_need_no_repair() -> None:
    demand = _demand(10, 10)
    demand.want(None)
    _, sequence = _plan(demand, room=15)  # block 1 is half sent
    assert demand.nack([(0, 2, 3)], sequence).block_count == 1
    assert demand.nack([(5, 1, 1)], sequence).block_count == 0


def test_used_up_symbols_come_round_again() -> None:
    demand = _demand(200)
    demand.want(None)
    _, sequence = _plan(demand)
    seen = set(range(200))
    for _ in range(6):
        demand.nack([(0, 1, 20)], sequence)
        rows, sequence = _plan(demand, sequence)
        assert all(esi + count <= 255 for *_, esi, count in rows)
        seen |= {esi + i for *_, esi, count in rows for i in range(count)}
    assert demand.idle
    assert len(seen) > 200


def test_a_late_joiner_starts_a_partial_pass() -> None:
    demand = _demand(2, 2, 2, 2)
    demand.want(None)
    _, sequence = _plan(demand, room=4)
    demand.want(np.array([True, False, True, True]))
    rows, _ = _plan(demand, sequence)
    assert rows == [(0, 0, 2, 0, 2), (0, 0, 3, 0, 2), (0, 1, 0, 0, 2)]


def test_withdrawn_demand_sends_nothing() -> None:
    demand = _demand(2, 2)
    demand.want(None)
    _, sequence = _plan(demand, room=3)
    demand.withdraw()
    assert demand.idle
    assert _plan(demand, sequence)[0] == []


def test_interleaved_blocks_end_together_and_lag_shows_the_open_ones() -> None:
    """One lost super-datagram costs a stripe of each block; no receiver considers an unfinished block passed."""
    demand = _demand(*[20] * 10)
    demand.want(None)
    segments = SegmentList(1000)
    demand.plan_pass(segments, 0, lambda _: 2, 4)
    rows = segments.array()
    assert rows["count"].sum() == 10 * 22
    per_symbol_block = np.repeat(rows["block"], rows["count"])
    for start in range(0, 88 - 24, 6):
        _, counts = np.unique(per_symbol_block[start : start + 24], return_counts=True)
        assert counts.max() <= 6 + 6, (
            "a window of four stripes holds hardly more of one block than of another"
        )
    lowest_open = rows["block"].astype(int) - rows["lag"]
    last_row = {int(block): int(np.flatnonzero(rows["block"] == block)[-1]) for block in range(10)}
    for index, lowest in enumerate(lowest_open.tolist()):
        assert all(last_row[block] < index for block in range(lowest))
    for block in range(10):
        mine = rows[rows["block"] == block]
        assert np.concatenate([np.arange(r["esi"], r["esi"] + r["count"]) for r in mine]).tolist() == list(
            range(22)
        )
    assert demand.idle


def test_a_nack_for_a_block_that_is_being_sent_waits() -> None:
    demand = _demand(20, 20, 20)
    demand.want(None)
    segments = SegmentList(30)
    sequence = demand.plan_pass(segments, 0, lambda _: 0, 3)
    assert demand.nack([(0, 3, 1)], sequence).block_count == 0


def test_symbols_on_their_way_to_the_receiver_are_not_sent_again() -> None:
    """Machines that scan at different speeds report the same missing blocks at different times."""
    demand = _demand(4, 4, 4, 4)
    demand.want(np.array([True, True, False, False]))
    _, sequence = _plan(demand)
    demand.want(np.array([True, True, True, False]), heard_sequence=4)
    assert _plan(demand, sequence)[0] == [(0, 0, 2, 0, 4), (0, 1, 0, 0, 4)]


def test_a_block_that_is_being_sent_is_not_sent_again_for_a_nack() -> None:
    demand = _demand(6)
    demand.want(None)
    _, sequence = _plan(demand, room=3)
    demand.want(None, heard_sequence=2)
    rows, _ = _plan(demand, sequence)
    assert rows == [(0, 0, 0, 3, 3)]
    assert demand.idle


def test_a_nack_takes_the_first_blocks_that_its_limit_allows() -> None:
    demand = _demand(*[10] * 6)
    demand.want(None)
    _, sequence = _plan(demand)
    demand.nack([(1, 1, 4)], sequence)
    nacked = demand.nack([(0, 3, 4), (5, 1, 2)], sequence, 8)
    assert (nacked.block_count, nacked.symbol_count, nacked.added_count) == (3, 12, 8)
    assert [row[2:] for row in _plan(demand, sequence)[0]] == [(1, 10, 4), (0, 10, 4), (2, 10, 4)]


def test_a_block_that_a_nack_names_twice_is_repaired_once_by_its_largest_deficit() -> None:
    demand = _demand(10, 10, 10)
    demand.want(None)
    _, sequence = _plan(demand)
    nacked = demand.nack([(1, 2, 2), (1, 1, 5), (0, 2, 3), (2, 9, 1)], sequence)
    assert nacked.block_count == 3
    assert [row[2:] for row in _plan(demand, sequence)[0]] == [(0, 10, 3), (1, 10, 5), (2, 10, 2)]
    assert demand.idle


def test_a_pass_that_reaches_nacked_blocks_takes_them_over() -> None:
    demand = _demand(*[10] * 3000)
    demand.want(None)
    _, sequence = _plan(demand, room=30_000)
    demand.nack([(0, 3000, 2)], sequence)
    demand.want(None)
    rows, _ = _plan(demand, sequence, room=10)
    assert demand.repair_block_count <= 3000
    segments = SegmentList(40_000)
    demand.plan_pass(segments, sequence, lambda _: 0)
    assert demand.repair_block_count == 0
    assert rows
