"""The dashboard of one cast, from the sender's metrics."""

from __future__ import annotations

from docs.dashboards.panels import (
    GOOD_IS_NOTHING,
    Json,
    cell,
    chart,
    dashboard,
    field,
    link,
    query,
    row,
    stat,
    table,
    variable,
)
from docs.dashboards.receivers import Receivers
from docs.dashboards.shared import LOSS, PROGRESS, ROOM

CAST = 'cast="$cast"'
MACHINE = 'cast="$cast", machine=~"$machine"'
TO_MACHINE = link("Open the machine", "machine", room="$room", machine=cell("Machine"))

MACHINES = Receivers(
    MACHINE,
    "machine",
    ("room",),
    (link("Open the machine", "machine", room=field("room"), machine=field("machine")),),
)
"""Each machine of the cast."""


def cast() -> Json:
    return dashboard(
        "cast",
        "diskcast: one cast",
        "One cast: the progress and the bottleneck of every machine, and the cost of repair.",
        [
            variable(
                "room", "Room", "Rooms whose casts are listed.", "label_values(diskcast_cast_info, room)"
            ),
            variable(
                "cast",
                "Cast",
                "The cast to show.",
                f"label_values(diskcast_cast_info{{{ROOM}}}, cast)",
                multiple=False,
            ),
            variable(
                "machine",
                "Machine",
                "Machines to show.",
                f"label_values(diskcast_receiver_progress_ratio{{{CAST}}}, machine)",
            ),
        ],
        [
            row("The cast"),
            stat(
                "Image",
                "Name of the image, and the room.",
                [query(f"diskcast_cast_info{{{CAST}}}", "{{image}} {{room}}")],
                size=(6, 3),
                names_only=True,
            ),
            stat(
                "State",
                "State of the cast, and its outcome once it has ended.",
                [
                    query(f"diskcast_cast_state{{{CAST}}} == 1", "{{state}}"),
                    query(f"diskcast_cast_outcome{{{CAST}}}", "{{outcome}}"),
                    query(f"diskcast_cast_paused{{{CAST}}} == 1", "paused"),
                ],
                size=(6, 3),
                names_only=True,
            ),
            stat(
                "Machines",
                "Number of machines in each state.",
                [query(f"max by (state) (diskcast_receivers{{{CAST}}})", "{{state}}")],
                size=(12, 3),
            ),
            stat(
                "Room verified",
                "Share of the needed blocks that were written, read back and found correct: the mean of the room, "
                "and the slowest machine.",
                [
                    query(f"avg(diskcast_receiver_progress_ratio{{{CAST}}})", "room"),
                    query(f"min(diskcast_receiver_progress_ratio{{{CAST}}})", "slowest"),
                ],
                size=(6, 3),
                unit="percentunit",
                steps=PROGRESS,
            ),
            stat(
                "ETA",
                "Time until the last machine is done, at the current progress; 0 without progress.",
                [
                    query(
                        f"max((1 - diskcast_receiver_progress_ratio{{{CAST}}}) / "
                        f"(deriv(diskcast_receiver_progress_ratio{{{CAST}}}[$__rate_interval]) > 0)) or vector(0)",
                        "ETA",
                    )
                ],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Elapsed time",
                "Time since the first image data was sent.",
                [query(f"max(diskcast_cast_elapsed_seconds{{{CAST}}})", "elapsed")],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Time to completion",
                "Time from a machine's join to its last verified block: mean of the complete machines.",
                [
                    query(
                        f"sum(diskcast_receiver_completion_seconds_sum{{{CAST}}}) / "
                        f"sum(diskcast_receiver_completion_seconds_count{{{CAST}}})",
                        "mean",
                    )
                ],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Bottleneck",
                "Current bottleneck of the rate, and the machine if it is one machine's.",
                [query(f"diskcast_bottleneck{{{CAST}}}", "{{cause}} {{machine}}")],
                size=(6, 3),
                names_only=True,
            ),
            row("Machines"),
            chart(
                "Progress",
                "Share of the blocks needed at join that are verified. A line that stays behind is a straggler; its "
                "bottleneck is shown below.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_progress_ratio"))],
                size=(12, 9),
                unit="percentunit",
                links=MACHINES.links,
            ),
            MACHINES.loss(size=(12, 9)),
            table(
                "Machines now",
                "Machines of the cast, the slowest first. Click a machine to open its dashboard.",
                [
                    (
                        f"max by (machine, state) (diskcast_receiver_state{{{MACHINE}}})",
                        "",
                        "short",
                    ),
                    (
                        f"max by (machine) (diskcast_receiver_progress_ratio{{{MACHINE}}})",
                        "Verified",
                        "percentunit",
                    ),
                    (f"max by (machine) (diskcast_receiver_loss_ratio{{{MACHINE}}})", "Loss", "percentunit"),
                    (f"max by (machine) (diskcast_receiver_rtt_seconds{{{MACHINE}}})", "Round trip", "s"),
                    (f"max by (machine) (diskcast_receiver_nacks_total{{{MACHINE}}})", "NACKs", "short"),
                    (
                        f"max by (machine) (diskcast_receiver_written_bytes_total{{{MACHINE}}})",
                        "Written",
                        "bytes",
                    ),
                    (
                        f"max by (machine) (diskcast_receiver_rewritten_blocks{{{MACHINE}}})",
                        "Blocks rewritten",
                        "short",
                    ),
                ],
                {"machine": "Machine", "state": "State"},
                size=(16, 8),
                sort=("Verified", False),
                steps={"Loss": LOSS, "Blocks rewritten": GOOD_IS_NOTHING},
                links=[TO_MACHINE],
            ),
            table(
                "Failed",
                "Machines that weren't imaged completely, and the cause.",
                [(f"max by (machine, cause) (diskcast_receiver_failed{{{MACHINE}}})", "", "short")],
                {"machine": "Machine", "cause": "Cause"},
                size=(8, 8),
                links=[TO_MACHINE],
            ),
            chart(
                "Written",
                "Rate at which each machine writes to its disk.",
                [MACHINES.line(MACHINES.rate("diskcast_receiver_written_bytes_total"))],
                unit="Bps",
                links=MACHINES.links,
            ),
            MACHINES.buffers(),
            MACHINES.dropped(),
            MACHINES.bottleneck(),
            MACHINES.states(),
            MACHINES.stragglers(),
            chart(
                "Sustainable rate",
                "Highest rate that each machine has shown to sustain; empty as long as the machine had no bottleneck.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_sustainable_rate_bytes_per_second"))],
                unit="Bps",
                points=True,
                links=MACHINES.links,
            ),
            chart(
                "Queueing delay",
                "Time that datagrams to each machine spend in queues of switches, links and the machine.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_queue_delay_seconds"))],
                unit="s",
                links=MACHINES.links,
            ),
            chart(
                "Loss bursts and interleaving",
                "Datagrams lost in a row, and the number of interleaved blocks, which spreads a lost burst over them.",
                [
                    MACHINES.line(MACHINES.now("diskcast_receiver_loss_burst_datagrams")),
                    query(f"max(diskcast_interleave_depth_blocks{{{CAST}}})", "interleaved blocks"),
                ],
            ),
            row("Rate"),
            chart(
                "Sending rate",
                "Rate that the sender paces to, and the rate that left. A difference means that the sender's "
                "machine or link can't keep up.",
                [
                    query(f"max(diskcast_rate_bytes_per_second{{{CAST}}})", "paced"),
                    query(f"max(diskcast_achieved_rate_bytes_per_second{{{CAST}}})", "achieved"),
                    query(
                        f"max(rate(diskcast_sent_bytes_total{{{CAST}}}[$__rate_interval]))",
                        "sent, from the counter",
                    ),
                ],
                size=(12, 8),
                unit="Bps",
            ),
            chart(
                "Bottleneck of the cast",
                "Share of time that each bottleneck limited the rate. Ceiling: the configured limit. None: the rate "
                "rises, or there is nothing to send.",
                [
                    query(
                        "max by (cause, machine) "
                        f"(rate(diskcast_bottleneck_seconds_total{{{CAST}}}[$__rate_interval]))",
                        "{{cause}} {{machine}}",
                    )
                ],
                size=(12, 8),
                stacked=True,
            ),
            chart(
                "Datagrams per system call",
                "Many: the kernel segments them (GSO). One: it can't, and the sender needs far more CPU time.",
                [
                    query(
                        f"max(rate(diskcast_sent_datagrams_total{{{CAST}}}[$__rate_interval])) / "
                        f"max(rate(diskcast_send_calls_total{{{CAST}}}[$__rate_interval]))",
                        "datagrams per call",
                    ),
                    query(
                        f"max(rate(diskcast_send_queue_full_total{{{CAST}}}[$__rate_interval]))",
                        "waits for the interface/s",
                    ),
                ],
            ),
            chart(
                "Round trip",
                "Round-trip time of the group (GRTT), which times repairs, and of each machine.",
                [
                    query(f"max(diskcast_grtt_seconds{{{CAST}}})", "group"),
                    MACHINES.line(MACHINES.now("diskcast_receiver_rtt_seconds")),
                ],
                unit="s",
            ),
            chart(
                "Burst lateness",
                "Delay of bursts after their scheduled time: the jitter of pacing.",
                [
                    *(
                        query(
                            f"histogram_quantile({share}, sum by (le) "
                            f"(rate(diskcast_burst_lateness_seconds_bucket{{{CAST}}}[$__rate_interval])))",
                            f"{label} of them",
                        )
                        for share, label in (("0.5", "half"), ("0.99", "99%"))
                    ),
                    query(
                        f"max(rate(diskcast_burst_lateness_seconds_sum{{{CAST}}}[$__rate_interval])) / "
                        f"max(rate(diskcast_burst_lateness_seconds_count{{{CAST}}}[$__rate_interval]))",
                        "mean",
                    ),
                ],
                unit="s",
            ),
            row("Repair"),
            chart(
                "Symbols sent, by cause",
                "Source: the image itself. Parity: sent proactively. Repair: responses to NACKs.",
                [
                    query(
                        f"max by (cause) (rate(diskcast_sent_symbols_total{{{CAST}}}[$__rate_interval]))",
                        "{{cause}}",
                    )
                ],
                unit="pps",
                stacked=True,
            ),
            chart(
                "Overhead",
                "Parity and repair symbols per source symbol so far, and the current share of parity.",
                [
                    query(
                        f'sum(diskcast_sent_symbols_total{{{CAST}, cause!="source"}}) / '
                        f'sum(diskcast_sent_symbols_total{{{CAST}, cause="source"}})',
                        "sent so far",
                    ),
                    query(f"max(diskcast_parity_ratio{{{CAST}}})", "parity now"),
                ],
                unit="percentunit",
            ),
            chart(
                "Requested by NACK",
                "Symbols that machines requested, and NACK datagrams that arrived.",
                [
                    MACHINES.line(MACHINES.rate("diskcast_receiver_nacked_symbols_total")),
                    query(
                        f"max(rate(diskcast_nacks_received_total{{{CAST}}}[$__rate_interval]))",
                        "NACK datagrams",
                    ),
                ],
                unit="pps",
            ),
            chart(
                "Blocks to send",
                "Blocks that the current pass still has to send.",
                [query(f"max(diskcast_wanted_blocks{{{CAST}}})", "blocks")],
            ),
            chart(
                "Pass",
                "Progress of the current pass over the image, and its number.",
                [
                    query(f"max(diskcast_pass_progress_ratio{{{CAST}}})", "progress"),
                    query(f"max(diskcast_pass_index{{{CAST}}})", "number"),
                ],
            ),
            chart(
                "Joins",
                "Joins so far, including machines that joined again.",
                [query(f"max(diskcast_joins_total{{{CAST}}})", "joins")],
            ),
            row("Feedback"),
            chart(
                "Datagrams rejected by the sender",
                "Feedback that was dropped, by reason. Anything but zero needs attention: an old agent, or an unknown "
                "sender of datagrams.",
                [
                    query(
                        f"max by (reason) (rate(diskcast_rejected_datagrams_total{{{CAST}}}[$__rate_interval]))",
                        "{{reason}}",
                    )
                ],
                size=(12, 8),
                unit="pps",
            ),
            chart(
                "Blocks with forged symbols",
                "Blocks in which machines found symbols that aren't the sender's, and those that they fetched over the "
                "control API. Anything but a few needs attention: a hostile machine in the room, or a broken one.",
                [
                    query(f"max(rate(diskcast_block_digests_total{{{CAST}}}[$__rate_interval]))", "digests"),
                    query(f"max(rate(diskcast_fetched_blocks_total{{{CAST}}}[$__rate_interval]))", "fetched"),
                ],
                size=(12, 8),
                unit="cps",
            ),
            chart(
                "Feedback",
                "Feedback from the machines, and FLUSH messages that request it.",
                [
                    query(
                        f"max(rate(diskcast_feedback_datagrams_total{{{CAST}}}[$__rate_interval]))",
                        "datagrams",
                    ),
                    query(
                        f"max(rate(diskcast_reports_received_total{{{CAST}}}[$__rate_interval]))", "reports"
                    ),
                    query(f"max(rate(diskcast_flushes_sent_total{{{CAST}}}[$__rate_interval]))", "flushes"),
                ],
                size=(12, 8),
                unit="pps",
            ),
        ],
        hours="15m",
    )
