"""One machine in its casts, and beside its room."""

from __future__ import annotations

from docs.dashboards.panels import (
    GOOD_IS_NOTHING,
    Json,
    chart,
    dashboard,
    field,
    link,
    query,
    row,
    stat,
    variable,
)
from docs.dashboards.receivers import Receivers
from docs.dashboards.shared import LOSS, PROGRESS, R

ONE = 'room=~"$room", machine="$machine"'
AGENT = 'machine="$machine"'
"""An agent that is scraped itself has the label that its target was given: see prometheus.yml."""


IT = Receivers(ONE, "cast", (), (link("Open the cast", "cast", cast=field("cast")),))
"""In each of its casts."""


def of_agent(metric: str) -> str:
    return f"rate({metric}{{{AGENT}}}[$__rate_interval])"


def machine() -> Json:
    return dashboard(
        "machine",
        "diskcast: one machine",
        "One machine in its casts: how far it is, what holds it back, and how it compares to its room.",
        [
            variable(
                "room",
                "Room",
                "Rooms whose machines to choose from.",
                "label_values(diskcast_receiver_state, room)",
            ),
            variable(
                "machine",
                "Machine",
                "The machine to show.",
                f"label_values(diskcast_receiver_state{{{R}}}, machine)",
                many=False,
            ),
        ],
        [
            row("Now"),
            stat(
                "State",
                "What it is doing in its cast, or how it ended.",
                [query(f"max by (state) (diskcast_receiver_state{{{ONE}}})", "{{state}}")],
                names_only=True,
            ),
            stat(
                "Image",
                "What it gets, in which cast.",
                [
                    query(
                        f"max by (image, cast) (diskcast_receiver_progress_ratio{{{ONE}}})",
                        "{{image}} {{cast}}",
                    )
                ],
                names_only=True,
                links=IT.links,
            ),
            stat(
                "Verified",
                "Share of the blocks it needed that were written, read back and found right.",
                [IT.line(IT.now("diskcast_receiver_progress_ratio"))],
                unit="percentunit",
                steps=PROGRESS,
            ),
            stat(
                "Failed because of",
                "Why it ended without all of the image. Nothing here: it didn't.",
                [query(f"max by (cause) (diskcast_receiver_failed{{{ONE}}})", "{{cause}}")],
                names_only=True,
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Blocks rewritten",
                "Blocks that read back wrong from its disk and were written again: known when it has ended. A "
                "disk that does "
                "this should be replaced.",
                [IT.line(IT.now("diskcast_receiver_rewritten_blocks"))],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Alerts",
                "Alerts about this machine that fire now.",
                [
                    query(
                        'count(ALERTS{alertname=~"Diskcast.*", alertstate="firing", machine="$machine"}) or vector(0)',
                        "firing",
                    )
                ],
                steps=GOOD_IS_NOTHING,
            ),
            row("Beside its room"),
            chart(
                "Progress",
                "Its own, and the middle of all machines of the same casts.",
                [
                    IT.line(IT.now("diskcast_receiver_progress_ratio")),
                    query(
                        "quantile by (cast) (0.5, diskcast_receiver_progress_ratio and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{ONE}}})",
                        "{{cast}} middle",
                    ),
                ],
                size=(12, 8),
                unit="percentunit",
                links=IT.links,
            ),
            chart(
                "Written",
                "What it writes to its disk, and the middle of all machines of the same casts.",
                [
                    IT.line(IT.rate("diskcast_receiver_written_bytes_total")),
                    query(
                        "quantile by (cast) (0.5, "
                        "rate(diskcast_receiver_written_bytes_total[$__rate_interval]) and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{ONE}}})",
                        "{{cast}} middle",
                    ),
                ],
                size=(12, 8),
                unit="Bps",
            ),
            row("What holds it back"),
            IT.limited_by(),
            IT.stragglers(),
            IT.states(),
            IT.loss(),
            chart(
                "Loss bursts",
                "Datagrams lost in a row, on average since it joined.",
                [IT.line(IT.now("diskcast_receiver_loss_burst_datagrams"), "in a row")],
            ),
            chart(
                "Asked for by NACK",
                "Symbols that it asked for, and its NACK datagrams.",
                [
                    IT.line(IT.rate("diskcast_receiver_nacked_symbols_total"), "symbols"),
                    IT.line(IT.rate("diskcast_receiver_nacks_total"), "NACK datagrams"),
                ],
                unit="pps",
            ),
            IT.buffers(size=(6, 8)),
            IT.dropped(size=(6, 8)),
            chart(
                "Rate that it could take",
                "What it has shown that it can take, and what the cast is paced to.",
                [
                    IT.line(IT.now("diskcast_receiver_sustainable_rate_bytes_per_second"), "could take"),
                    IT.line(
                        "max by (cast) (diskcast_rate_bytes_per_second and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{ONE}}})",
                        "is paced to",
                    ),
                ],
                size=(6, 8),
                unit="Bps",
                points=True,
            ),
            chart(
                "Round trip and queues",
                "To it and back, and what of that is time in queues.",
                [
                    IT.line(IT.now("diskcast_receiver_rtt_seconds"), "round trip"),
                    IT.line(IT.now("diskcast_receiver_queue_delay_seconds"), "queues"),
                ],
                size=(6, 8),
                unit="s",
            ),
            row("As its agent says, where it is scraped itself"),
            chart(
                "Verified bytes",
                "Bytes that were read back and are right, those that its disk held already, and what there is "
                "to verify.",
                [
                    query(f"diskcast_agent_verified_bytes{{{AGENT}}}", "verified"),
                    query(f"diskcast_agent_kept_bytes{{{AGENT}}}", "held already"),
                    query(f"diskcast_agent_image_used_bytes{{{AGENT}}}", "to verify"),
                ],
                unit="bytes",
            ),
            chart(
                "Received and written",
                "What arrives, and what goes to its disk.",
                [
                    query(of_agent("diskcast_agent_received_bytes_total"), "received"),
                    query(of_agent("diskcast_agent_written_bytes_total"), "written"),
                ],
                unit="Bps",
            ),
            chart(
                "Blocks repaired",
                "Blocks that needed repair symbols: parity that was sent anyway, or answers to its NACKs.",
                [query(f"diskcast_agent_repaired_blocks_total{{{AGENT}}}", "by {{by}}")],
            ),
            chart(
                "Datagrams lost",
                "Share of the datagrams that were sent and didn't arrive.",
                [
                    query(
                        f"1 - {of_agent('diskcast_agent_received_datagrams_total')} / "
                        f"{of_agent('diskcast_agent_expected_datagrams_total')}",
                        "lost",
                    )
                ],
                unit="percentunit",
                steps=LOSS,
            ),
            chart(
                "Limited by, share of the time",
                "Share of the time for which each of these held it back.",
                [query(of_agent("diskcast_agent_limited_seconds_total"), "{{bottleneck}}")],
                unit="percentunit",
                stacked=True,
            ),
            chart(
                "Datagrams rejected",
                "What was no use to it, by reason.",
                [query(of_agent("diskcast_agent_rejected_datagrams_total"), "{{reason}}")],
                unit="pps",
            ),
            chart(
                "Waiting at the socket",
                "Memory of the datagrams that wait for the agent.",
                [query(f"diskcast_agent_socket_queue_bytes{{{AGENT}}}", "waiting")],
                size=(12, 8),
                unit="bytes",
            ),
            chart(
                "Read back wrong",
                "Blocks that read back wrong and were got again, and blocks that arrived or read back with a "
                "wrong content.",
                [
                    query(f"diskcast_agent_rewritten_blocks_total{{{AGENT}}}", "rewritten"),
                    query(f"diskcast_agent_rejected_blocks_total{{{AGENT}}}", "rejected"),
                ],
                size=(12, 8),
            ),
        ],
        hours="15m",
    )
