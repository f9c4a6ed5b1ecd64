"""Prometheus metrics of an agent: one table, read from plain counters when somebody scrapes.

The data path pays nothing for them. Labels are bounded by fixed lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from protocol.wire.codec import REJECT_REASONS
from protocol.wire.messages import BOTTLENECKS
from receiver.reception.reporting.status import ReceptionState, ReceptionStatus

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values and a value."""


@dataclasses.dataclass(frozen=True, slots=True)
class AgentMetric:
    """One row of the table.

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
    AgentMetric("diskcast_agent_state", "gauge", "1 for what the agent is doing.", ("state",), _states),
    AgentMetric(
        "diskcast_agent_bottleneck",
        "gauge",
        "1 for what limits this receiver: the network, its socket, decoding or the disk.",
        ("bottleneck",),
        _bottlenecks,
    ),
    AgentMetric(
        "diskcast_agent_limited_seconds_total",
        "counter",
        "Time for which each of these was what limits this receiver, since data began.",
        ("bottleneck",),
        _bottleneck_seconds,
    ),
    AgentMetric(
        "diskcast_agent_demoted",
        "gauge",
        "1 while this machine is so slow that it is finished after the others.",
        (),
        _value(lambda s: s.demoted),
    ),
    AgentMetric(
        "diskcast_agent_image_bytes", "gauge", "Raw size of the image.", (), _value(lambda s: s.raw_bytes)
    ),
    AgentMetric(
        "diskcast_agent_image_used_bytes",
        "gauge",
        "Raw bytes of the image that aren't unused: what there is to verify.",
        (),
        _value(lambda s: s.raw_bytes_used),
    ),
    AgentMetric(
        "diskcast_agent_verified_bytes",
        "gauge",
        "Raw bytes that were read back from the target and are right.",
        (),
        _value(lambda s: s.raw_bytes_verified),
    ),
    AgentMetric(
        "diskcast_agent_kept_bytes",
        "gauge",
        "Raw bytes of the image that the target held already.",
        (),
        _value(lambda s: s.raw_bytes_kept),
    ),
    AgentMetric(
        "diskcast_agent_scanned_ratio",
        "gauge",
        "How much of the target was looked at for what it holds already, 0 to 1.",
        (),
        _value(lambda s: s.scanned_share),
    ),
    AgentMetric(
        "diskcast_agent_rewritten_blocks_total",
        "counter",
        "Blocks that read back wrong from the target and were got again.",
        (),
        _value(lambda s: s.blocks_rewritten),
    ),
    AgentMetric(
        "diskcast_agent_needed_blocks",
        "gauge",
        "Blocks to be received that aren't verified on the target yet.",
        (),
        _value(lambda s: s.blocks_needed),
    ),
    AgentMetric(
        "diskcast_agent_received_bytes_total",
        "counter",
        "Bytes of data datagrams received, headers of UDP and below left out.",
        (),
        _value(lambda s: s.bytes_received),
    ),
    AgentMetric(
        "diskcast_agent_written_bytes_total",
        "counter",
        "Bytes written to the target.",
        (),
        _value(lambda s: s.bytes_written),
    ),
    AgentMetric(
        "diskcast_agent_expected_datagrams_total",
        "counter",
        "Data datagrams that were sent, by their sequence numbers.",
        (),
        _value(lambda s: s.datagrams_expected),
    ),
    AgentMetric(
        "diskcast_agent_received_datagrams_total",
        "counter",
        "Data datagrams received.",
        (),
        _value(lambda s: s.datagrams_received),
    ),
    AgentMetric(
        "diskcast_agent_rejected_datagrams_total",
        "counter",
        "Datagrams that were no use, by reason.",
        ("reason",),
        _rejected,
    ),
    AgentMetric(
        "diskcast_agent_socket_drops_total",
        "counter",
        "Messages dropped at the socket because this program was too slow; what the kernel coalesced counts as one.",
        (),
        _value(lambda s: s.socket_drops),
    ),
    AgentMetric(
        "diskcast_agent_pool_drops_total",
        "counter",
        "Symbols dropped for want of a buffer: decoding or the disk was too slow.",
        (),
        _value(lambda s: s.pool_drops),
    ),
    AgentMetric(
        "diskcast_agent_socket_queue_bytes",
        "gauge",
        "Memory of the datagrams that wait at the socket, the kernel's bookkeeping included.",
        (),
        _value(lambda s: s.socket_queued_bytes),
    ),
    AgentMetric(
        "diskcast_agent_buffer_fill_ratio",
        "gauge",
        "Share of the assembly buffers in use, 0 to 1.",
        (),
        _value(lambda s: s.fill),
    ),
    AgentMetric(
        "diskcast_agent_repaired_blocks_total",
        "counter",
        "Blocks that needed repair symbols: parity that was sent anyway, or answers to NACKs.",
        ("by",),
        _repaired,
    ),
    AgentMetric(
        "diskcast_agent_rejected_blocks_total",
        "counter",
        "Blocks that arrived or read back with a wrong content and were asked for again.",
        (),
        _value(lambda s: s.blocks_rejected),
    ),
    AgentMetric(
        "diskcast_agent_nacks_sent_total",
        "counter",
        "NACK datagrams sent.",
        (),
        _value(lambda s: s.nacks_sent),
    ),
    AgentMetric(
        "diskcast_agent_rejoins_total",
        "counter",
        "Times that the sender was started again and joined again.",
        (),
        _value(lambda s: s.rejoins),
    ),
    AgentMetric(
        "diskcast_agent_grtt_seconds",
        "gauge",
        "Group round-trip time as the sender says.",
        (),
        _value(lambda s: s.grtt_s),
    ),
    AgentMetric(
        "diskcast_agent_running_seconds",
        "gauge",
        "Time since the agent began to join.",
        (),
        _value(lambda s: s.seconds),
    ),
)


class _AgentCollector(Collector):
    def __init__(self, status: Callable[[], ReceptionStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[MetricFamily]:
        """Read everything once; counters may be a batch apart, as they aren't locked."""
        status = self._status()
        for metric in METRICS:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(status):
                family.add_metric(labels, value)
            yield family


@contextlib.contextmanager
def serve_metrics(port: int, status: Callable[[], ReceptionStatus]) -> Iterator[None]:
    """Serve the table on every address of this machine while the context lasts.

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
                f"TCP port {port} is taken, so metrics can't be served there: choose another --metrics-port"
            ) from error
        raise ConfigurationError(f"metrics can't be served on TCP port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
