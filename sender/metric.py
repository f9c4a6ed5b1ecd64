"""One row of the sender's metrics table: a name, what it says, and where its value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from protocol.receiver_record import ReceiverRecord
from protocol.sender_session import SenderSession
from sender.feedback import FeedbackPort
from sender.transmitter import TransmitterStatistics

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values and a value."""


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
class Sources:
    """Where the values come from; read under the session's lock."""

    session: SenderSession
    transmitter: TransmitterStatistics
    feedback: FeedbackPort


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge.

    Attributes:
        name: as it is exposed, with unit and ``_total``.
        kind: its Prometheus type.
        help: what it says.
        labels: their names.
        read: the samples.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Sources], Samples]


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram without labels.

    Attributes:
        name: as it is exposed, with unit; its series end in ``_bucket``, ``_sum`` and ``_count``.
        help: what it says.
        read: the observations.
    """

    name: str
    help: str
    read: Callable[[Sources], HistogramSample]

    @property
    def kind(self) -> Literal["histogram"]:
        """Its Prometheus type."""
        return "histogram"

    @property
    def labels(self) -> tuple[str, ...]:
        """None but a bucket's ``le``."""
        return ()


def value(read: Callable[[Sources], float]) -> Callable[[Sources], Samples]:
    """One sample without labels."""
    return lambda sources: [((), read(sources))]


def of_session(read: Callable[[SenderSession], float]) -> Callable[[Sources], Samples]:
    """One sample without labels that the session alone tells."""
    return lambda sources: [((), read(sources.session))]


def per_receiver(read: Callable[[ReceiverRecord], float]) -> Callable[[Sources], Samples]:
    """A sample for each receiver, labelled with its name."""
    return lambda sources: [((record.name,), read(record)) for record in sources.session.receivers.values()]
