"""Panels of machines in casts: all machines of a cast, or one machine in all its casts."""

from __future__ import annotations

import dataclasses

from docs.dashboards.panels import Json, chart, query, timeline
from docs.dashboards.shared import BOTTLENECK_VALUES, FULL, LOSS, STATE_VALUES, STRAGGLER, numbered


@dataclasses.dataclass(frozen=True)
class Receivers:
    """Machines in casts that a dashboard's variables select.

    Attributes:
        selector: label matchers of the machines.
        name: the label that names a line.
        link_labels: further labels of a line, for its links.
        links: links of a line.
    """

    selector: str
    name: str
    link_labels: tuple[str, ...]
    links: tuple[Json, ...]

    @property
    def by(self) -> str:
        """Labels of a line; without the instance, so that a cast that another daemon took over has one line."""
        return ", ".join((self.name, *self.link_labels))

    def now(self, metric: str) -> str:
        """Return a query for a gauge of each machine."""
        return f"max by ({self.by}) ({metric}{{{self.selector}}})"

    def rate(self, metric: str) -> str:
        """Return a query for the rate per second of a counter of each machine."""
        return f"max by ({self.by}) (rate({metric}{{{self.selector}}}[$__rate_interval]))"

    def line(self, expression: str, suffix: str = "") -> Json:
        """Return a query whose series are named by the name label and ``suffix``."""
        return query(expression, f"{{{{{self.name}}}}} {suffix}".rstrip())

    def bottleneck(self) -> Json:
        """Return the panel of the bottlenecks that the machines report."""
        expression = numbered(
            "diskcast_receiver_bottleneck", self.selector, "bottleneck", BOTTLENECK_VALUES, self.by
        )
        return timeline(
            "Bottleneck over time",
            "Bottleneck that the machine reports while it receives data: network, socket, decoding or disk.",
            [self.line(expression)],
            BOTTLENECK_VALUES,
            links=self.links,
        )

    def states(self) -> Json:
        """Return the panel of the machines' states."""
        expression = numbered("diskcast_receiver_state", self.selector, "state", STATE_VALUES, self.by)
        return timeline(
            "State over time",
            "State of the machine in the cast, from joining to its result.",
            [self.line(expression)],
            STATE_VALUES,
            links=self.links,
        )

    def stragglers(self) -> Json:
        """Return the panel of the machines that don't keep up with the others."""
        slow, demoted = self.now("diskcast_receiver_slow"), self.now("diskcast_receiver_demoted")
        return timeline(
            "Stragglers",
            "Slow: the machine no longer limits the rate of the others. Straggler: it was slow for too long and is "
            "finished after the others.",
            [self.line(f"clamp_max({slow} + 2 * {demoted}, 2)")],
            STRAGGLER,
            links=self.links,
        )

    def loss(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """Return the panel of datagram loss."""
        return chart(
            "Loss",
            "Share of datagrams that don't arrive. Parity repairs a few percent without delay. One machine: check its "
            "cable and port. Several machines: check the switch.",
            [self.line(self.now("diskcast_receiver_loss_ratio"))],
            size=size,
            unit="percentunit",
            steps=LOSS,
            links=self.links,
        )

    def buffers(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """Return the panel of receive buffers, which fill when decoding or the disk is too slow."""
        return chart(
            "Buffers in use",
            "Share of the machine's receive buffers in use. Full: it can't decode or write as fast as data arrives.",
            [self.line(self.now("diskcast_receiver_buffer_fill_ratio"))],
            size=size,
            unit="percentunit",
            steps=FULL,
            links=self.links,
        )

    def dropped(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """Return the panel of data that arrived and was dropped."""
        return chart(
            "Dropped by the machine",
            "Datagrams dropped at the socket (the agent was too slow), and symbols dropped because all buffers were "
            "full (decoding or the disk was too slow).",
            [
                self.line(self.rate("diskcast_receiver_socket_drops_total"), "socket"),
                self.line(self.rate("diskcast_receiver_pool_drops_total"), "buffers"),
            ],
            size=size,
            unit="pps",
            links=self.links,
        )
