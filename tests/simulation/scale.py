"""Rooms of a thousand receivers: one shared link to the switch, ports that are never the limit."""

from __future__ import annotations

import dataclasses

from protocol.model.cast_policy import CastPolicy
from tests.simulation.cast import SYMBOL_BYTES, CastModel, SimulatedCast
from tests.simulation.links import Port, shaped
from tests.simulation.receivers import ReceiverModel

BLOCK_BYTES = 256 * 1024
_BLOCK_SYMBOLS = -(-BLOCK_BYTES // SYMBOL_BYTES)
_POOL_BLOCKS = 48
LINK_MBIT_PER_S = 200.0


def room(
    receiver_count: int,
    block_count: int,
    *,
    loss: float = 0.0,
    lost_calls_at: tuple[float, ...] = (),
    rate_bytes_per_s: float | None = None,
    seed: int = 1,
) -> CastModel:
    """Return a cast of ``block_count`` full blocks.

    Args:
        receiver_count: receivers.
        block_count: blocks of 256 KiB.
        loss: random loss of each receiver.
        lost_calls_at: times at which all receivers lose a super-datagram, seconds from the start.
        rate_bytes_per_s: a fixed rate; None for automatic.
        seed: seed of all randomness.
    """
    receiver = ReceiverModel(Port(loss=loss), assembly_bytes=_POOL_BLOCKS * _BLOCK_SYMBOLS * SYMBOL_BYTES)
    return CastModel(
        (receiver,) * receiver_count,
        image_bytes=block_count * BLOCK_BYTES,
        policy=CastPolicy(rate_bytes_per_s=rate_bytes_per_s),
        uplink=shaped(LINK_MBIT_PER_S, delay_s=0.0, lost_calls_at=lost_calls_at),
        seed=seed,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ScaleFigures:
    """Figures of a cast to a room.

    Attributes:
        seconds: from the first image data to the last receiver's end.
        nack_count: NACK datagrams.
        report_count: REPORT datagrams.
        feedback_share: bytes of feedback over bytes of data, Ethernet frames, once image data is being sent.
        sent_ratio: symbols sent over source symbols.
    """

    receiver_count: int
    seconds: float
    nack_count: int
    report_count: int
    feedback_share: float
    sent_ratio: float


def figures(cast: SimulatedCast) -> ScaleFigures:
    """Return the figures of a finished cast."""
    statistics = cast.session.statistics
    assert statistics.started_at is not None
    ends = [receiver.finished_at for receiver in cast.receivers if receiver.complete]
    assert len(ends) == len(cast.receivers), cast.describe()
    return ScaleFigures(
        receiver_count=len(ends),
        seconds=max(end for end in ends if end is not None) - statistics.started_at,
        nack_count=statistics.nacks_received_count,
        report_count=statistics.reports_received_count,
        feedback_share=cast.feedback_bytes / cast.data_bytes,
        sent_ratio=statistics.symbols_transmitted_count / cast.image.source_symbols_count,
    )
