"""Reports of work: a machine's limit is measured in the bytes of frames that its work takes off the network."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.model.bottleneck import Cause
from protocol.sending.feedback.report_intake import frame_bytes_per_raw
from protocol.wire.messages import BOTTLENECKS
from tests.unit.protocol.sending.sender_inputs import FRAME_BYTES, join_request, new_session, report

WRITTEN_BYTES_PER_S = 40_000_000
BLOCK_COUNT = 40


def test_zero_blocks_are_neither_sent_nor_written() -> None:
    """Scaled by the size of the disk, the knee of a slow disk was a tenth of the truth for a sparse image."""
    parameters = new_session(block_count=BLOCK_COUNT).parameters
    k = np.zeros(BLOCK_COUNT, np.uint8)
    k[::10] = 100
    stored_bytes = np.count_nonzero(k) * parameters.block_bytes
    sent_bytes = np.count_nonzero(k) * 100 * FRAME_BYTES
    assert frame_bytes_per_raw(k, parameters, FRAME_BYTES) == pytest.approx(sent_bytes / stored_bytes)


def test_an_image_of_zero_blocks_sends_nothing() -> None:
    parameters = new_session(block_count=BLOCK_COUNT).parameters
    assert frame_bytes_per_raw(np.zeros(BLOCK_COUNT, np.uint8), parameters, FRAME_BYTES) == 0.0


def test_a_slow_disks_knee_is_the_rate_at_which_it_writes_the_stored_blocks() -> None:
    session = new_session(block_count=BLOCK_COUNT)
    grant = session.join(join_request(), 100.0)
    session.control_datagrams(100.0)
    source_symbols = session.image_demand._k
    stored_count = int(np.count_nonzero(source_symbols))
    assert stored_count < 0.9 * source_symbols.size, "the image has zero blocks"
    for step in range(1, 30):
        now = 100.0 + step / 10
        session.mark_transmitted(session._planner.next_sequence, int(session.rate_bytes_per_s / 10), now)
        figures = {
            "bytes_written": step * WRITTEN_BYTES_PER_S // 10,
            "fill_permille": 900,
            "bottleneck": BOTTLENECKS.index(Cause.DISK),
        }
        session.receive_feedback_untrusted(report(grant, step, **figures), now)
    sent_bytes = int(source_symbols.sum()) * FRAME_BYTES
    written_bytes = stored_count * session.parameters.block_bytes
    knee = session.rate_control.capacities[grant.receiver_id].knee_bytes_per_s
    assert knee == pytest.approx(WRITTEN_BYTES_PER_S * sent_bytes / written_bytes, rel=0.05)
