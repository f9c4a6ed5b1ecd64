"""What is shown of machines in casts wherever it is shown: all machines of a cast, or one machine in its casts."""

from __future__ import annotations

import dataclasses

from docs.dashboards.panels import Json, chart, query, timeline
from docs.dashboards.shared import BOTTLENECK_VALUES, FULL, LOSS, STATE_VALUES, STRAGGLER, numbered


@dataclasses.dataclass(frozen=True)
class Receivers:
    """Machines in casts, as a dashboard's variables choose them.

    Attributes:
        selector: which ones.
        name: the label that a line is called by.
        beside: further labels that a line has, for its links.
        links: what a click on a line opens.
    """

    selector: str
    name: str
    beside: tuple[str, ...]
    links: tuple[Json, ...]

    @property
    def by(self) -> str:
        """The labels of a line: one line also while two daemons of a cast that was taken over are remembered."""
        return ", ".join((self.name, *self.beside))

    def now(self, metric: str) -> str:
        """A gauge of each."""
        return f"max by ({self.by}) ({metric}{{{self.selector}}})"

    def rate(self, metric: str) -> str:
        """A counter of each, by the second."""
        return f"max by ({self.by}) (rate({metric}{{{self.selector}}}[$__rate_interval]))"

    def line(self, expression: str, words: str = "") -> Json:
        """A query whose series are called by name."""
        return query(expression, f"{{{{{self.name}}}}} {words}".rstrip())

    def limited_by(self) -> Json:
        """Each machine's own answer."""
        expression = numbered(
            "diskcast_receiver_bottleneck", self.selector, "bottleneck", BOTTLENECK_VALUES, self.by
        )
        return timeline(
            "Limited by",
            "What a machine says holds it back while data is cast to it: the network, its socket, decoding or its "
            "disk.",
            [self.line(expression)],
            BOTTLENECK_VALUES,
            links=self.links,
        )

    def states(self) -> Json:
        """From joining to the end."""
        expression = numbered("diskcast_receiver_state", self.selector, "state", STATE_VALUES, self.by)
        return timeline(
            "State over time", "What became of it.", [self.line(expression)], STATE_VALUES, links=self.links
        )

    def stragglers(self) -> Json:
        """Who doesn't keep up with the others."""
        slow, demoted = self.now("diskcast_receiver_slow"), self.now("diskcast_receiver_demoted")
        return timeline(
            "Stragglers",
            "Slow: it no longer sets the rate of the others. Straggler: it was slow for too long and is finished after "
            "the others.",
            [self.line(f"clamp_max({slow} + 2 * {demoted}, 2)")],
            STRAGGLER,
            links=self.links,
        )

    def loss(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """What doesn't arrive."""
        return chart(
            "Loss",
            "Share of the datagrams that don't arrive. Parity mends a few per cent at no cost in time. One machine "
            "alone: its cable or port; several: the switch between.",
            [self.line(self.now("diskcast_receiver_loss_ratio"))],
            size=size,
            unit="percentunit",
            steps=LOSS,
            links=self.links,
        )

    def buffers(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """Whether decoding and disk keep up."""
        return chart(
            "Buffers in use",
            "Share of a machine's buffers. Full: it can't decode or write as fast as data comes.",
            [self.line(self.now("diskcast_receiver_buffer_fill_ratio"))],
            size=size,
            unit="percentunit",
            steps=FULL,
            links=self.links,
        )

    def dropped(self, *, size: tuple[int, int] = (8, 8)) -> Json:
        """What arrived in vain."""
        return chart(
            "Dropped by the machine",
            "Datagrams dropped at the socket (its program was too slow) and symbols for want of a buffer (decoding "
            "or the disk was).",
            [
                self.line(self.rate("diskcast_receiver_socket_drops_total"), "socket"),
                self.line(self.rate("diskcast_receiver_pool_drops_total"), "buffers"),
            ],
            size=size,
            unit="pps",
            links=self.links,
        )
