"""Define the metrics of a cast: name, help text, and the function that reads the value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final, Literal

from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.sender_session import SenderSession
from sender.cast.session.feedback import FeedbackPort
from sender.cast.transmission.transmitter import TransmitterStatistics

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Pairs of label values and a value."""

CAST_LABELS: Final = ("cast", "image", "room")
"""First labels of every series of a cast: eight hexadecimal digits, name of the image, id of the room."""


@dataclasses.dataclass(frozen=True, slots=True)
class HistogramSample:
    """The observations of a histogram so far.

    Attributes:
        bounds: upper bounds of the buckets; the last bucket has none.
        bucket_counts: observations in each bucket, not cumulative; one more than ``bounds``.
        total: sum of all observations.
    """

    bounds: tuple[float, ...]
    bucket_counts: tuple[int, ...]
    total: float


@dataclasses.dataclass(frozen=True, slots=True)
class MetricSources:
    """The sources of the values of one cast; read under the lock of the session.

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
        name: exposed name, with unit and ``_total``.
        kind: Prometheus type.
        help: help text.
        labels: names of the labels after :data:`CAST_LABELS`.
        read: returns the samples of one cast.
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
        name: exposed name, with unit; its series end in ``_bucket``, ``_sum`` and ``_count``.
        help: help text.
        read: returns the observations.
    """

    name: str
    help: str
    read: Callable[[MetricSources], HistogramSample]

    @property
    def kind(self) -> Literal["histogram"]:
        """Prometheus type."""
        return "histogram"

    @property
    def labels(self) -> tuple[str, ...]:
        """No labels besides :data:`CAST_LABELS` and ``le``."""
        return ()


def value(read: Callable[[MetricSources], float]) -> Callable[[MetricSources], Samples]:
    """Return a reader of one sample without labels."""
    return lambda sources: [((), read(sources))]


def of_session(read: Callable[[SenderSession], float]) -> Callable[[MetricSources], Samples]:
    """Return a reader of one sample without labels, from the session alone."""
    return lambda sources: [((), read(sources.session))]


def per_machine(read: Callable[[ReceiverRecord], float]) -> Callable[[MetricSources], Samples]:
    """Return a reader of one sample per receiver, labelled with its name."""
    return lambda sources: [((record.name,), read(record)) for record in sources.session.receivers.values()]
