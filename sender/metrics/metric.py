"""One row of the table of a cast's metrics: a name, what it says, and where its value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final, Literal

from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.sender_session import SenderSession
from sender.cast.session.feedback import FeedbackPort
from sender.cast.transmission.transmitter import TransmitterStatistics

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values and a value."""

CAST_LABELS: Final = ("cast", "image", "room")
"""Labels of every series of a cast, before its own: eight hexadecimal digits, the image's name, the room's id."""


@dataclasses.dataclass(frozen=True, slots=True)
class HistogramSample:
    """What was observed so far.

    Attributes:
        bounds: upper bounds of the buckets but the last, which has none.
        bucket_counts: observations in each bucket, those of the buckets before it left out; one more than ``bounds``.
        total: all observations, summed.
    """

    bounds: tuple[float, ...]
    bucket_counts: tuple[int, ...]
    total: float


@dataclasses.dataclass(frozen=True, slots=True)
class MetricSources:
    """Where the values of one cast come from; read under the session's lock.

    Attributes:
        now: monotonic seconds.
    """

    session: SenderSession
    transmitter: TransmitterStatistics
    feedback: FeedbackPort
    now: float


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge.

    Attributes:
        name: as it is exposed, with unit and ``_total``.
        kind: its Prometheus type.
        help: what it says.
        labels: their names, :data:`CAST_LABELS` left out.
        read: the samples of one cast.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[MetricSources], Samples]


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram without labels of its own.

    Attributes:
        name: as it is exposed, with unit; its series end in ``_bucket``, ``_sum`` and ``_count``.
        help: what it says.
        read: the observations.
    """

    name: str
    help: str
    read: Callable[[MetricSources], HistogramSample]

    @property
    def kind(self) -> Literal["histogram"]:
        """Its Prometheus type."""
        return "histogram"

    @property
    def labels(self) -> tuple[str, ...]:
        """None but :data:`CAST_LABELS` and a bucket's ``le``."""
        return ()


def value(read: Callable[[MetricSources], float]) -> Callable[[MetricSources], Samples]:
    """One sample without labels."""
    return lambda sources: [((), read(sources))]


def of_session(read: Callable[[SenderSession], float]) -> Callable[[MetricSources], Samples]:
    """One sample without labels that the session alone tells."""
    return lambda sources: [((), read(sources.session))]


def per_machine(read: Callable[[ReceiverRecord], float]) -> Callable[[MetricSources], Samples]:
    """A sample for each receiver, labelled with its name."""
    return lambda sources: [((record.name,), read(record)) for record in sources.session.receivers.values()]
