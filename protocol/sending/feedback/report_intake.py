"""The use of a receiver's REPORT: its record, the group's round-trip time, and a sample for rate control."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.constants import GRTT_MAX_S
from protocol.model.session_records import CastParameters
from protocol.sending.feedback.grtt import Echoes, GrttEstimator
from protocol.sending.rate.rate_control import RateController
from protocol.sending.receiver_record import ReceiverRecord
from protocol.wire.messages import Report


class ReportIntake:
    """The way of reports into round-trip time and rate."""

    def __init__(
        self,
        rate_control: RateController,
        grtt: GrttEstimator,
        echoes: Echoes,
        *,
        frame_bytes: int,
        frame_bytes_per_raw: float,
    ) -> None:
        """Start without reports.

        Args:
            rate_control: takes the samples.
            grtt: takes the round-trip times.
            echoes: time stamps that were really sent.
            frame_bytes: length of a frame.
            frame_bytes_per_raw: bytes of frames that the cast sends for each byte that a receiver writes.
        """
        self._rate_control = rate_control
        self._grtt = grtt
        self._echoes = echoes
        self._frame_bytes = frame_bytes
        self._frame_bytes_per_raw = frame_bytes_per_raw

    def take(
        self, record: ReceiverRecord, report: Report, *, interval_s: float, casting: bool, now: float
    ) -> None:
        """Use a report.

        Args:
            record: the receiver.
            report: its latest report.
            interval_s: time between two of its reports.
            casting: image data is being sent.
            now: monotonic seconds.
        """
        sample = record.apply_report(
            report, self._frame_bytes, self._frame_bytes_per_raw, now, casting=casting
        )
        capacity = self._rate_control.capacities.get(record.receiver_id)
        rtt_s = self._echoes.rtt_s(report.echo_us, report.echo_delay_us, now)
        if rtt_s is not None:
            record.rtt_s = rtt_s
            if not record.state.active or (capacity is not None and capacity.exempt):
                self._grtt.forget(record.receiver_id)  # the group doesn't wait for a straggler's answers
            else:
                self._grtt.add(record.receiver_id, rtt_s, now, interval_s)
        if record.state.active:
            # A report from farther away than the group describes an earlier time, whether or not it says the truth.
            round_trip_s = max(self._grtt.grtt_s, min(record.rtt_s, GRTT_MAX_S))
            self._rate_control.add_sample(record.receiver_id, sample, round_trip_s, now)


def frame_bytes_per_raw(
    source_symbols: NDArray[np.uint8], parameters: CastParameters, frame_bytes: int
) -> float:
    """Return the bytes of frames that a cast sends for each byte that a receiver writes.

    Zero blocks are neither sent nor among the bytes that receivers report as written.
    """
    stored_count = int(np.count_nonzero(source_symbols))
    written_bytes = min(stored_count * parameters.block_bytes, parameters.raw_bytes)
    return int(source_symbols.sum(dtype=np.int64)) * frame_bytes / max(1, written_bytes)
