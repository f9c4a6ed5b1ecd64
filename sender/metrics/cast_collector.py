"""Collect the metrics of casts from their sessions when Prometheus scrapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.sending.sender_session import SenderSession
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.transmitter import TransmitterStatistics
from sender.metrics.cast_metrics import METRICS
from sender.metrics.metric import CAST_LABELS, HistogramSample, Metric, MetricSources, Samples

_Row = list[tuple[tuple[str, ...], float]] | HistogramSample
"""The samples of one metric and one cast."""


class ObservedCast(Protocol):
    """A cast of this process, running or ended."""

    @property
    def room_id(self) -> str | None:
        """Id of the room; None for a cast that any machine may join."""

    @property
    def locked_session(self) -> LockedSession:
        """The session."""

    @property
    def transmitter(self) -> TransmitterStatistics:
        """The counters of the transmitter."""

    @property
    def feedback(self) -> FeedbackPort:
        """The counters of the feedback port."""


class CastsCollector(Collector):
    """A collector of all casts of this process."""

    def __init__(self, casts: Callable[[], Iterable[ObservedCast]]) -> None:
        """Collect from the casts that ``casts`` returns; it is called in the scraping thread."""
        self._casts = casts

    def collect(self) -> Iterator[MetricFamily]:
        """Yield one family per metric.

        The samples of a cast are copied under the lock of its session, in 4 ms for 500 receivers; all other work
        happens without the lock.
        """
        copies = [self._copy(cast) for cast in self._casts()]
        for row, metric in enumerate(METRICS):
            if isinstance(metric, Metric):
                family_class = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = family_class(metric.name, metric.help, labels=CAST_LABELS + metric.labels)
                for cast_labels, rows in copies:
                    samples = rows[row]
                    assert isinstance(samples, list)
                    for labels, value in samples:
                        family.add_metric(cast_labels + labels, value)
                yield family
            else:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=CAST_LABELS)
                for cast_labels, rows in copies:
                    sample = rows[row]
                    assert isinstance(sample, HistogramSample)
                    histogram.add_metric(cast_labels, _buckets(sample), sample.total)
                yield histogram

    @staticmethod
    def _copy(cast: ObservedCast) -> tuple[tuple[str, ...], list[_Row]]:
        with cast.locked_session.read() as (session, now):
            sources = MetricSources(session, cast.transmitter, cast.feedback, now)
            rows = [_listed(metric.read(sources)) for metric in METRICS]
            return _cast_labels(session, cast.room_id), rows


def _listed(read: Samples | HistogramSample) -> _Row:
    return read if isinstance(read, HistogramSample) else list(read)


def _cast_labels(session: SenderSession, room_id: str | None) -> tuple[str, ...]:
    parameters = session.parameters
    return f"{parameters.cast_id:08x}", parameters.image_name, room_id or ""


class SingleCastCollector(CastsCollector):
    """A collector of the one cast of ``diskcast send``, which has no rooms."""

    room_id = None

    def __init__(
        self, locked_session: LockedSession, transmitter: TransmitterStatistics, feedback: FeedbackPort
    ) -> None:
        """Collect from the parts of the cast."""
        super().__init__(lambda: [self])
        self.locked_session = locked_session
        self.transmitter = transmitter
        self.feedback = feedback


def _buckets(sample: HistogramSample) -> list[tuple[str, int]]:
    """Return bounds and cumulative counts, as Prometheus expects them."""
    bounds = [*map(str, sample.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(sample.bucket_counts), strict=True))
