"""Reports of poisoned blocks: one answer serves all members, and none of them can cause more work than its share.

Lost if these fail: a member that lies about poisoned blocks takes the sender's processor or its uplink.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np

from protocol.constants import (
    BLOCK_FETCH_BURST_BYTES,
    BLOCK_FETCH_MEMBER_BURST_BYTES,
    DIGESTS_MEMBER_BURST,
    DIGESTS_MEMBER_PER_S,
    DIGESTS_PER_S,
    MIB,
)
from protocol.sending.feedback.poisoned_reports import PoisonedReports
from protocol.sending.member_limits import MemberLimits
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.sending.transmission.demand import Demand
from protocol.sending.transmission.send_plan import DigestRequest
from protocol.wire.messages import CastObject, Poisoned

BLOCK_COUNT = 50 * 200 * 64
SOURCE_COUNT = 64
"""Symbols of a block of 1 MiB."""


def reports() -> PoisonedReports:
    k = np.full(BLOCK_COUNT, SOURCE_COUNT, np.uint8)
    demand = CastDemand(Demand(CastObject.MANIFEST, k[:1]), Demand(CastObject.IMAGE, k))
    return PoisonedReports(demand, MIB // SOURCE_COUNT, random.Random(1).randbytes)


def poisoned_blocks(blocks: Iterable[int]) -> Poisoned:
    return Poisoned(object=CastObject.IMAGE, blocks=tuple((block,) for block in blocks))


def taken(poisoned: PoisonedReports, now: float) -> list[DigestRequest]:
    requests: list[DigestRequest] = []
    while due := poisoned.take_due(now):
        requests += due
    return requests


def test_a_block_is_answered_once_for_all_members() -> None:
    poisoned = reports()
    for _ in range(30):
        poisoned.report(MemberLimits(), poisoned_blocks([7, 9]), grtt_s=0.01, now=1.0)
    requests = taken(poisoned, 1.0)
    assert [request.block for request in requests] == [7, 9]
    assert requests[0].salt != requests[1].salt
    poisoned.report(MemberLimits(), poisoned_blocks([7]), grtt_s=0.01, now=1.04)
    assert taken(poisoned, 1.04) == [], "the answer is still on its way to that member"
    poisoned.report(MemberLimits(), poisoned_blocks([7]), grtt_s=0.01, now=1.1)
    (again,) = taken(poisoned, 1.1)
    assert again.salt != requests[0].salt, "a forger that has seen a salt gains nothing for the next round"


def test_a_lying_member_gets_its_share() -> None:
    poisoned, limits = reports(), MemberLimits()
    answered = 0
    for step in range(1000):
        now = 1.0 + step / 100
        poisoned.report(limits, poisoned_blocks(range(step * 64, step * 64 + 64)), grtt_s=0.01, now=now)
        answered += len(taken(poisoned, now))
    assert answered <= DIGESTS_MEMBER_BURST + 10 * DIGESTS_MEMBER_PER_S
    poisoned.report(MemberLimits(), poisoned_blocks([5]), grtt_s=0.01, now=11.0)
    assert len(taken(poisoned, 11.0)) >= 1, "others are still answered"


def test_a_room_of_liars_is_bounded() -> None:
    poisoned, members = reports(), [MemberLimits() for _ in range(50)]
    answered = 0
    for step in range(200):
        now = 1.0 + step / 100
        for index, limits in enumerate(members):
            first = (index * 200 + step) * 64
            poisoned.report(limits, poisoned_blocks(range(first, first + 64)), grtt_s=0.01, now=now)
        answered += len(taken(poisoned, now))
    assert answered <= 3 * DIGESTS_PER_S + 4


def test_an_answer_between_two_batches_is_short() -> None:
    poisoned = reports()
    poisoned.report(MemberLimits(), poisoned_blocks(range(64)), grtt_s=0.01, now=1.0)
    assert len(poisoned.take_due(1.0)) == 4


def test_fetches_are_bounded_for_each_member_and_for_the_cast() -> None:
    poisoned, greedy = reports(), MemberLimits()
    assert (
        sum(poisoned.allow_fetch(greedy, 0, 1.0) for _ in range(100)) == BLOCK_FETCH_MEMBER_BURST_BYTES // MIB
    )
    members = [MemberLimits() for _ in range(50)]
    allowed = sum(poisoned.allow_fetch(member, 0, 1.0) for member in members)
    assert allowed == (BLOCK_FETCH_BURST_BYTES - BLOCK_FETCH_MEMBER_BURST_BYTES) // MIB
