"""Casts' metrics for Prometheus: read from the sessions when it scrapes, and served over HTTP by ``diskcast send``."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from protocol.sending.sender_session import SenderSession
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.transmitter import TransmitterStatistics
from sender.metrics.cast_metrics import METRICS
from sender.metrics.metric import CAST_LABELS, HistogramSample, Metric, MetricSources, Samples

_Row = list[tuple[tuple[str, ...], float]] | HistogramSample
"""What a row of the table said of one cast."""


class ObservedCast(Protocol):
    """A cast of this process, running or ended."""

    @property
    def room_id(self) -> str | None:
        """Whose machines are imaged; None: whoever joins."""

    @property
    def shared(self) -> LockedSession:
        """Its session."""

    @property
    def transmitter(self) -> TransmitterStatistics:
        """Its transmitter's counters."""

    @property
    def feedback(self) -> FeedbackPort:
        """Its feedback port's counters."""


class CastsCollector(Collector):
    """Reads the table for each cast when Prometheus scrapes."""

    def __init__(self, casts: Callable[[], Iterable[ObservedCast]]) -> None:
        """Read from what ``casts`` returns, called in the scraping thread."""
        self._casts = casts

    def collect(self) -> Iterator[MetricFamily]:
        """One family a row.

        A cast's samples are copied under its session's lock, 4 ms for 500 receivers; the rest happens without it.
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
        with cast.shared.read() as (session, now):
            sources = MetricSources(session, cast.transmitter, cast.feedback, now)
            rows = [_listed(metric.read(sources)) for metric in METRICS]
            return _cast_labels(session, cast.room_id), rows


def _listed(read: Samples | HistogramSample) -> _Row:
    return read if isinstance(read, HistogramSample) else list(read)


def _cast_labels(session: SenderSession, room_id: str | None) -> tuple[str, ...]:
    parameters = session.parameters
    return f"{parameters.cast_id:08x}", parameters.image_name, room_id or ""


class CastCollector(CastsCollector):
    """The one cast of ``diskcast send``, which knows of no rooms."""

    room_id = None

    def __init__(
        self, shared: LockedSession, transmitter: TransmitterStatistics, feedback: FeedbackPort
    ) -> None:
        """Read from these."""
        super().__init__(lambda: [self])
        self.shared = shared
        self.transmitter = transmitter
        self.feedback = feedback


def _buckets(sample: HistogramSample) -> list[tuple[str, int]]:
    """Bounds and cumulative counts, as Prometheus wants them."""
    bounds = [*map(str, sample.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(sample.bucket_counts), strict=True))


@contextlib.contextmanager
def metrics_server(collector: Collector, address: str, port: int) -> Iterator[int]:
    """Serve ``/metrics`` in a thread of its own while the context lasts; yields the port.

    Raises:
        AddressInUseError: the port is taken.
        ConfigurationError: ``address`` isn't one of this machine, or the port isn't allowed.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"the metrics port {port} of {address} is taken: choose another with --metrics-port"
            ) from error
        raise ConfigurationError(
            f"can't serve metrics on {address} port {port}: {error}; choose others with --metrics-address and "
            "--metrics-port"
        ) from error
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
