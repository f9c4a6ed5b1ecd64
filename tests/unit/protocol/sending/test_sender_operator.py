"""The operator's commands to a running cast: start now, pause, resume, another ceiling."""

from __future__ import annotations

import pytest

from protocol.constants import RATE_BYTES_PER_S_MAX
from protocol.model.cast_state import CastState
from protocol.sending.sender_session import SenderSession
from protocol.wire.control_codec import decode_control_untrusted
from protocol.wire.messages import Announce, Flush
from tests.unit.protocol.sending.sender_inputs import join_request, new_session, transmit_all


def _casting(**policy: object) -> SenderSession:
    session = new_session(**policy)
    session.join(join_request(), 100.0)
    session.control_datagrams(100.1)
    assert session.state == CastState.CASTING
    return session


def test_a_cast_started_by_hand_waits_for_the_operator() -> None:
    session = new_session(by_hand=True, max_wait_s=1.0)
    session.join(join_request(), 100.0)
    session.control_datagrams(103.0)
    assert session.state == CastState.GATHERING
    session.gathering.start_now()
    session.control_datagrams(103.1)
    assert session.state == CastState.CASTING


def test_the_cast_does_not_wait_for_machines_that_wont_join() -> None:
    session = new_session(wait_for=3)
    session.join(join_request(), 100.0)
    session.control_datagrams(101.0)
    assert session.state == CastState.GATHERING
    session.gathering.stop_waiting_for(2)
    session.control_datagrams(101.1)
    assert session.state == CastState.CASTING


def test_the_start_command_does_nothing_without_a_receiver() -> None:
    session = new_session()
    session.gathering.start_now()
    session.control_datagrams(100.5)
    assert session.state == CastState.GATHERING
    session.join(join_request(), 100.6)
    session.control_datagrams(100.7)
    assert session.state == CastState.CASTING


def test_a_paused_cast_sends_only_announcements_and_then_continues() -> None:
    session = _casting()
    assert session.next_plan(100.2, 10) is not None
    session.pause()
    assert session.next_plan(100.3, 10) is None
    datagrams = [decode_control_untrusted(data)[1] for data in session.control_datagrams(105.0)]
    assert any(isinstance(message, Announce) for message in datagrams)
    assert not any(isinstance(message, Flush) for message in datagrams)
    assert session.sending_overdue_s(200.0) == 0.0
    session.resume(106.0)
    assert session.next_plan(106.0, 10) is not None


def test_a_pause_does_not_count_as_a_slow_sender() -> None:
    session = _casting()
    transmit_all(session, 100.2)
    session.pause()
    session.resume(160.0)
    session.image_demand.want(None)
    assert session.next_plan(160.0, 10) is not None
    assert session.sending_overdue_s(160.0) == 0.0
    assert session.sending_overdue_s(190.0) == pytest.approx(30.0)


def test_the_ceiling_moves_while_the_cast_runs() -> None:
    session = _casting()
    session.set_rate_ceiling(2e6)
    assert session.rate_bytes_per_s <= 2e6
    fixed = _casting(rate_bytes_per_s=5e6)
    fixed.set_rate_ceiling(1e6)
    assert fixed.rate_bytes_per_s == 1e6
    fixed.set_rate_ceiling(RATE_BYTES_PER_S_MAX)
    assert fixed.rate_bytes_per_s == 5e6


def test_the_operators_own_maximum_stays_below_the_shared_ceiling() -> None:
    session = _casting(rate_max_bytes_per_s=3e6)
    session.set_rate_ceiling(9e6)
    assert session.rate_control.maximum_bytes_per_s == 3e6
