"""The dashboard of one machine in its casts, compared with its room."""

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
from docs.dashboards.shared import LOSS, PROGRESS, ROOM

MACHINE = 'room=~"$room", machine="$machine"'
AGENT = 'machine="$machine"'
"""Selector of an agent that Prometheus scrapes directly; prometheus.yml sets the label."""

CASTS = Receivers(MACHINE, "cast", (), (link("Open the cast", "cast", cast=field("cast")),))
"""The machine in each of its casts."""


def agent_rate(metric: str) -> str:
    return f"rate({metric}{{{AGENT}}}[$__rate_interval])"


def machine() -> Json:
    return dashboard(
        "machine",
        "diskcast: one machine",
        "One machine in its casts: its progress and bottleneck, compared with its room.",
        [
            variable(
                "room",
                "Room",
                "Rooms whose machines are listed.",
                "label_values(diskcast_receiver_state, room)",
            ),
            variable(
                "machine",
                "Machine",
                "The machine to show.",
                f"label_values(diskcast_receiver_state{{{ROOM}}}, machine)",
                multiple=False,
            ),
        ],
        [
            row("Now"),
            stat(
                "State",
                "State of the machine in its cast.",
                [query(f"max by (state) (diskcast_receiver_state{{{MACHINE}}})", "{{state}}")],
                names_only=True,
            ),
            stat(
                "Image",
                "Image that the machine receives, and the cast.",
                [
                    query(
                        f"max by (image, cast) (diskcast_receiver_progress_ratio{{{MACHINE}}})",
                        "{{image}} {{cast}}",
                    )
                ],
                names_only=True,
                links=CASTS.links,
            ),
            stat(
                "Verified",
                "Share of the needed blocks that were written, read back and found correct.",
                [CASTS.line(CASTS.now("diskcast_receiver_progress_ratio"))],
                unit="percentunit",
                steps=PROGRESS,
            ),
            stat(
                "Cause of failure",
                "Cause, if the machine wasn't imaged completely; otherwise empty.",
                [query(f"max by (cause) (diskcast_receiver_failed{{{MACHINE}}})", "{{cause}}")],
                names_only=True,
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Blocks rewritten",
                "Blocks that read back wrong from the disk and were written again; reported at the end of the cast. "
                "Replace such a disk.",
                [CASTS.line(CASTS.now("diskcast_receiver_rewritten_blocks"))],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Alerts",
                "Firing alerts about this machine.",
                [
                    query(
                        'count(ALERTS{alertname=~"Diskcast.*", alertstate="firing", machine="$machine"}) or vector(0)',
                        "firing",
                    )
                ],
                steps=GOOD_IS_NOTHING,
            ),
            row("Compared with its room"),
            chart(
                "Progress",
                "Progress of this machine, and the median of all machines of the same casts.",
                [
                    CASTS.line(CASTS.now("diskcast_receiver_progress_ratio")),
                    query(
                        "quantile by (cast) (0.5, diskcast_receiver_progress_ratio and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{MACHINE}}})",
                        "{{cast}} median",
                    ),
                ],
                size=(12, 8),
                unit="percentunit",
                links=CASTS.links,
            ),
            chart(
                "Written",
                "Rate at which this machine writes to its disk, and the median of all machines of the same casts.",
                [
                    CASTS.line(CASTS.rate("diskcast_receiver_written_bytes_total")),
                    query(
                        "quantile by (cast) (0.5, "
                        "rate(diskcast_receiver_written_bytes_total[$__rate_interval]) and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{MACHINE}}})",
                        "{{cast}} median",
                    ),
                ],
                size=(12, 8),
                unit="Bps",
            ),
            row("Bottleneck and loss"),
            CASTS.bottleneck(),
            CASTS.stragglers(),
            CASTS.states(),
            CASTS.loss(),
            chart(
                "Loss bursts",
                "Datagrams lost in a row, on average since the machine joined.",
                [CASTS.line(CASTS.now("diskcast_receiver_loss_burst_datagrams"), "in a row")],
            ),
            chart(
                "Requested by NACK",
                "Symbols that the machine requested, and its NACK datagrams.",
                [
                    CASTS.line(CASTS.rate("diskcast_receiver_nacked_symbols_total"), "symbols"),
                    CASTS.line(CASTS.rate("diskcast_receiver_nacks_total"), "NACK datagrams"),
                ],
                unit="pps",
            ),
            CASTS.buffers(size=(6, 8)),
            CASTS.dropped(size=(6, 8)),
            chart(
                "Sustainable rate",
                "Highest rate that the machine has shown to sustain, and the rate that the cast is paced to.",
                [
                    CASTS.line(
                        CASTS.now("diskcast_receiver_sustainable_rate_bytes_per_second"), "sustainable"
                    ),
                    CASTS.line(
                        "max by (cast) (diskcast_rate_bytes_per_second and on (cast) "
                        f"diskcast_receiver_progress_ratio{{{MACHINE}}})",
                        "paced",
                    ),
                ],
                size=(6, 8),
                unit="Bps",
                points=True,
            ),
            chart(
                "Round trip and queues",
                "Round-trip time of the machine, and its queueing delay.",
                [
                    CASTS.line(CASTS.now("diskcast_receiver_rtt_seconds"), "round trip"),
                    CASTS.line(CASTS.now("diskcast_receiver_queue_delay_seconds"), "queues"),
                ],
                size=(6, 8),
                unit="s",
            ),
            row("Metrics of the agent, if Prometheus scrapes it"),
            chart(
                "Verified bytes",
                "Bytes that were read back and found correct, bytes already on the disk, and all bytes to verify.",
                [
                    query(f"diskcast_agent_verified_bytes{{{AGENT}}}", "verified"),
                    query(f"diskcast_agent_kept_bytes{{{AGENT}}}", "already on the disk"),
                    query(f"diskcast_agent_image_used_bytes{{{AGENT}}}", "to verify"),
                ],
                unit="bytes",
            ),
            chart(
                "Received and written",
                "Bytes that arrive, and bytes that are written to the disk.",
                [
                    query(agent_rate("diskcast_agent_received_bytes_total"), "received"),
                    query(agent_rate("diskcast_agent_written_bytes_total"), "written"),
                ],
                unit="Bps",
            ),
            chart(
                "Blocks repaired",
                "Blocks that needed parity or repair symbols.",
                [query(f"diskcast_agent_repaired_blocks_total{{{AGENT}}}", "by {{by}}")],
            ),
            chart(
                "Datagrams lost",
                "Share of the sent datagrams that didn't arrive.",
                [
                    query(
                        f"1 - {agent_rate('diskcast_agent_received_datagrams_total')} / "
                        f"{agent_rate('diskcast_agent_expected_datagrams_total')}",
                        "lost",
                    )
                ],
                unit="percentunit",
                steps=LOSS,
            ),
            chart(
                "Bottleneck, share of time",
                "Share of time that each bottleneck limited the machine.",
                [query(agent_rate("diskcast_agent_limited_seconds_total"), "{{bottleneck}}")],
                unit="percentunit",
                stacked=True,
            ),
            chart(
                "Datagrams rejected",
                "Datagrams that the agent rejected, by reason.",
                [query(agent_rate("diskcast_agent_rejected_datagrams_total"), "{{reason}}")],
                unit="pps",
            ),
            chart(
                "Socket queue",
                "Memory of the datagrams that wait at the agent's socket.",
                [query(f"diskcast_agent_socket_queue_bytes{{{AGENT}}}", "waiting")],
                size=(12, 8),
                unit="bytes",
            ),
            chart(
                "Wrong blocks",
                "Rewritten: blocks that read back wrong and were received again. Rejected: all blocks that arrived or "
                "read back with wrong content.",
                [
                    query(f"diskcast_agent_rewritten_blocks_total{{{AGENT}}}", "rewritten"),
                    query(f"diskcast_agent_rejected_blocks_total{{{AGENT}}}", "rejected"),
                ],
                size=(12, 8),
            ),
        ],
        hours="15m",
    )
