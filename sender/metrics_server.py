"""Serves a cast's metrics to Prometheus over HTTP."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from sender.feedback import FeedbackPort
from sender.metric import HistogramSample, Metric, Samples, Sources
from sender.metrics import METRICS
from sender.shared_session import SharedSession
from sender.transmitter import TransmitterStatistics


class CastCollector(Collector):
    """Reads the table when Prometheus scrapes."""

    def __init__(
        self, shared: SharedSession, transmitter: TransmitterStatistics, feedback: FeedbackPort
    ) -> None:
        """Read from these."""
        self._shared = shared
        self._transmitter = transmitter
        self._feedback = feedback

    def collect(self) -> Iterator[MetricFamily]:
        """One family a row; the samples are copied under the lock and written out after it."""
        with self._shared.look() as (session, _now):
            sources = Sources(session, self._transmitter, self._feedback)
            counted = [
                (metric, list(metric.read(sources))) for metric in METRICS if isinstance(metric, Metric)
            ]
            observed = [
                (metric, metric.read(sources)) for metric in METRICS if not isinstance(metric, Metric)
            ]
        for metric, samples in counted:
            yield _family(metric, samples)
        for histogram, sample in observed:
            yield HistogramMetricFamily(
                histogram.name, histogram.help, buckets=_buckets(sample), sum_value=sample.total
            )


def _family(metric: Metric, samples: Samples) -> MetricFamily:
    family_class = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = family_class(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _buckets(sample: HistogramSample) -> list[tuple[str, int]]:
    """Bounds and cumulative counts, as Prometheus wants them."""
    bounds = [*map(str, sample.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(sample.bucket_counts), strict=True))


@contextlib.contextmanager
def metrics_server(collector: CastCollector, address: str, port: int) -> Iterator[int]:
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
