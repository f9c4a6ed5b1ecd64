"""Prometheus metrics of an agent: one table, read from plain counters at each scrape.

They cost the data path nothing. Labels are bounded by fixed lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from protocol.wire.codec import REJECT_REASONS
from protocol.wire.messages import BOTTLENECKS
from receiver.reception.reporting.status import ReceptionState, ReceptionStatus

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Pairs of label values and a value."""


class AgentMetricKind(enum.StrEnum):
    """Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclasses.dataclass(frozen=True, slots=True)
class AgentMetric:
    """One row of the table.

    Attributes:
        name: the exposed name, with unit and ``_total``.
        kind: the Prometheus type.
        help: the exposed help text.
        labels: the names of its labels.
        read: returns the samples.
    """

    name: str
    kind: AgentMetricKind
    help: str
    labels: tuple[str, ...]
    read: Callable[[ReceptionStatus], Samples]


def _value(read: Callable[[ReceptionStatus], float]) -> Callable[[ReceptionStatus], Samples]:
    return lambda status: [((), read(status))]


def _states(status: ReceptionStatus) -> Samples:
    return [((state.value,), float(state is status.state)) for state in ReceptionState]


def _bottlenecks(status: ReceptionStatus) -> Samples:
    return [((bottleneck,), float(bottleneck == status.bottleneck)) for bottleneck in BOTTLENECKS]


def _bottleneck_seconds(status: ReceptionStatus) -> Samples:
    return [((bottleneck,), seconds) for bottleneck, seconds in status.bottleneck_seconds.items()]


def _rejected(status: ReceptionStatus) -> Samples:
    return [((reason,), status.rejects.get(reason, 0)) for reason in REJECT_REASONS]


def _repaired(status: ReceptionStatus) -> Samples:
    return [(("parity",), status.blocks_repaired_by_parity), (("nack",), status.blocks_repaired_by_nack)]


METRICS: Final[tuple[AgentMetric, ...]] = (
    AgentMetric(
        "diskcast_agent_state", AgentMetricKind.GAUGE, "1 for the agent's current state.", ("state",), _states
    ),
    AgentMetric(
        "diskcast_agent_bottleneck",
        AgentMetricKind.GAUGE,
        "1 for this receiver's bottleneck: network, socket, decode or disk.",
        ("bottleneck",),
        _bottlenecks,
    ),
    AgentMetric(
        "diskcast_agent_limited_seconds_total",
        AgentMetricKind.COUNTER,
        "Time for which each was this receiver's bottleneck, since the first data.",
        ("bottleneck",),
        _bottleneck_seconds,
    ),
    AgentMetric(
        "diskcast_agent_demoted",
        AgentMetricKind.GAUGE,
        "1 while the sender finishes this slow machine after the others.",
        (),
        _value(lambda s: s.demoted),
    ),
    AgentMetric(
        "diskcast_agent_image_bytes",
        AgentMetricKind.GAUGE,
        "Raw size of the image.",
        (),
        _value(lambda s: s.raw_bytes),
    ),
    AgentMetric(
        "diskcast_agent_image_used_bytes",
        AgentMetricKind.GAUGE,
        "Raw bytes of the image to verify: all but unused blocks.",
        (),
        _value(lambda s: s.raw_bytes_used),
    ),
    AgentMetric(
        "diskcast_agent_verified_bytes",
        AgentMetricKind.GAUGE,
        "Raw bytes read back from the target and verified.",
        (),
        _value(lambda s: s.raw_bytes_verified),
    ),
    AgentMetric(
        "diskcast_agent_kept_bytes",
        AgentMetricKind.GAUGE,
        "Raw bytes of the image that were already on the target.",
        (),
        _value(lambda s: s.raw_bytes_kept),
    ),
    AgentMetric(
        "diskcast_agent_scanned_ratio",
        AgentMetricKind.GAUGE,
        "Share of the target scanned for blocks that it already holds, 0 to 1.",
        (),
        _value(lambda s: s.scanned_share),
    ),
    AgentMetric(
        "diskcast_agent_rewritten_blocks_total",
        AgentMetricKind.COUNTER,
        "Blocks that failed read-back and were requested again.",
        (),
        _value(lambda s: s.blocks_rewritten),
    ),
    AgentMetric(
        "diskcast_agent_needed_blocks",
        AgentMetricKind.GAUGE,
        "Stored blocks that aren't verified on the target yet.",
        (),
        _value(lambda s: s.blocks_needed),
    ),
    AgentMetric(
        "diskcast_agent_received_bytes_total",
        AgentMetricKind.COUNTER,
        "Bytes of data datagrams received, without UDP and lower headers.",
        (),
        _value(lambda s: s.bytes_received),
    ),
    AgentMetric(
        "diskcast_agent_written_bytes_total",
        AgentMetricKind.COUNTER,
        "Bytes written to the target.",
        (),
        _value(lambda s: s.bytes_written),
    ),
    AgentMetric(
        "diskcast_agent_expected_datagrams_total",
        AgentMetricKind.COUNTER,
        "Data datagrams sent by the sender, by their sequence numbers.",
        (),
        _value(lambda s: s.datagrams_expected),
    ),
    AgentMetric(
        "diskcast_agent_received_datagrams_total",
        AgentMetricKind.COUNTER,
        "Data datagrams received.",
        (),
        _value(lambda s: s.datagrams_received),
    ),
    AgentMetric(
        "diskcast_agent_rejected_datagrams_total",
        AgentMetricKind.COUNTER,
        "Datagrams rejected, by reason.",
        ("reason",),
        _rejected,
    ),
    AgentMetric(
        "diskcast_agent_socket_drops_total",
        AgentMetricKind.COUNTER,
        "Messages dropped at the full socket queue; datagrams coalesced by the kernel count as one.",
        (),
        _value(lambda s: s.socket_drops),
    ),
    AgentMetric(
        "diskcast_agent_pool_drops_total",
        AgentMetricKind.COUNTER,
        "Symbols dropped because decoding or the disk was too slow and no buffer was free.",
        (),
        _value(lambda s: s.pool_drops),
    ),
    AgentMetric(
        "diskcast_agent_socket_queue_bytes",
        AgentMetricKind.GAUGE,
        "Memory of the datagrams queued at the socket, with the kernel's overhead.",
        (),
        _value(lambda s: s.socket_queued_bytes),
    ),
    AgentMetric(
        "diskcast_agent_buffer_fill_ratio",
        AgentMetricKind.GAUGE,
        "Share of the assembly buffers in use, 0 to 1.",
        (),
        _value(lambda s: s.fill),
    ),
    AgentMetric(
        "diskcast_agent_repaired_blocks_total",
        AgentMetricKind.COUNTER,
        "Blocks repaired by proactive parity, or by symbols sent in answer to NACKs.",
        ("by",),
        _repaired,
    ),
    AgentMetric(
        "diskcast_agent_rejected_blocks_total",
        AgentMetricKind.COUNTER,
        "Blocks that arrived or read back damaged and were requested again.",
        (),
        _value(lambda s: s.blocks_rejected),
    ),
    AgentMetric(
        "diskcast_agent_nacks_sent_total",
        AgentMetricKind.COUNTER,
        "NACK datagrams sent.",
        (),
        _value(lambda s: s.nacks_sent),
    ),
    AgentMetric(
        "diskcast_agent_rejoins_total",
        AgentMetricKind.COUNTER,
        "Rejoins after the sender restarted or the cast moved.",
        (),
        _value(lambda s: s.rejoins),
    ),
    AgentMetric(
        "diskcast_agent_grtt_seconds",
        AgentMetricKind.GAUGE,
        "Group round-trip time as announced by the sender.",
        (),
        _value(lambda s: s.grtt_s),
    ),
    AgentMetric(
        "diskcast_agent_running_seconds",
        AgentMetricKind.GAUGE,
        "Time since the agent started to join the cast.",
        (),
        _value(lambda s: s.seconds),
    ),
)


class _AgentCollector(Collector):
    def __init__(self, status: Callable[[], ReceptionStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[MetricFamily]:
        """Read all metrics; counters may be one batch apart, since they aren't locked."""
        status = self._status()
        for metric in METRICS:
            make = CounterMetricFamily if metric.kind is AgentMetricKind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(status):
                family.add_metric(labels, value)
            yield family


@contextlib.contextmanager
def serve_metrics(port: int, status: Callable[[], ReceptionStatus]) -> Iterator[None]:
    """Serve the table on all addresses of this machine within the context.

    Args:
        port: TCP port.
        status: called from the scraping thread.

    Raises:
        AddressInUseError: the port is taken.
        ConfigurationError: the port can't be opened.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_AgentCollector(status))
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"cannot serve metrics on TCP port {port}: it is in use; choose another --metrics-port"
            ) from error
        raise ConfigurationError(
            f"cannot serve metrics on TCP port {port}: {error.strerror}; choose another --metrics-port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
