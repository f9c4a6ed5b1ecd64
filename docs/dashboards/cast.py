"""One cast as its sender sees it."""

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
from docs.dashboards.shared import LOSS, PROGRESS, R

C = 'cast="$cast"'
M = 'cast="$cast", machine=~"$machine"'
ROW_MACHINE = link("Open the machine", "machine", room="$room", machine=cell("Machine"))


MACHINES = Receivers(
    M,
    "machine",
    ("room",),
    (link("Open the machine", "machine", room=field("room"), machine=field("machine")),),
)
"""Each of them."""


def cast() -> Json:
    return dashboard(
        "cast",
        "diskcast: one cast",
        "One cast as its sender sees it: how far every machine is, what holds it back, and what repair costs.",
        [
            variable(
                "room", "Room", "Rooms whose casts to choose from.", "label_values(diskcast_cast_info, room)"
            ),
            variable(
                "cast",
                "Cast",
                "The cast to show.",
                f"label_values(diskcast_cast_info{{{R}}}, cast)",
                many=False,
            ),
            variable(
                "machine",
                "Machine",
                "Machines to show.",
                f"label_values(diskcast_receiver_progress_ratio{{{C}}}, machine)",
            ),
        ],
        [
            row("The cast"),
            stat(
                "Image",
                "What is cast, by the name it was packed with, and to which room.",
                [query(f"diskcast_cast_info{{{C}}}", "{{image}} {{room}}")],
                size=(6, 3),
                names_only=True,
            ),
            stat(
                "State",
                "Gathering its machines, casting, or ended; and then how.",
                [
                    query(f"diskcast_cast_state{{{C}}} == 1", "{{state}}"),
                    query(f"diskcast_cast_outcome{{{C}}}", "{{outcome}}"),
                    query(f"diskcast_cast_paused{{{C}}} == 1", "paused"),
                ],
                size=(6, 3),
                names_only=True,
            ),
            stat(
                "Machines",
                "How many machines are in which state.",
                [query(f"max by (state) (diskcast_receivers{{{C}}})", "{{state}}")],
                size=(12, 3),
            ),
            stat(
                "Room verified",
                "Mean share of the blocks needed that were written, read back and found right. Beside it the "
                "slowest machine.",
                [
                    query(f"avg(diskcast_receiver_progress_ratio{{{C}}})", "room"),
                    query(f"min(diskcast_receiver_progress_ratio{{{C}}})", "slowest"),
                ],
                size=(6, 3),
                unit="percentunit",
                steps=PROGRESS,
            ),
            stat(
                "Time left",
                "Until the last machine is done, if each goes on as it does now; 0 if nothing moves.",
                [
                    query(
                        f"max((1 - diskcast_receiver_progress_ratio{{{C}}}) / "
                        f"(deriv(diskcast_receiver_progress_ratio{{{C}}}[$__rate_interval]) > 0)) or vector(0)",
                        "left",
                    )
                ],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Time taken",
                "Since image data began to be sent.",
                [query(f"max(diskcast_cast_elapsed_seconds{{{C}}})", "taken")],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Time to completion",
                "From a machine's join to its last verified block, the mean of those that are complete.",
                [
                    query(
                        f"sum(diskcast_receiver_completion_seconds_sum{{{C}}}) / "
                        f"sum(diskcast_receiver_completion_seconds_count{{{C}}})",
                        "mean",
                    )
                ],
                size=(4, 3),
                unit="s",
            ),
            stat(
                "Bottleneck",
                "What holds the rate down now and, where it is one machine's doing, which.",
                [query(f"diskcast_bottleneck{{{C}}}", "{{cause}} {{machine}}")],
                size=(6, 3),
                names_only=True,
            ),
            row("Each machine"),
            chart(
                "Progress",
                "Share of the blocks needed at join that are verified. A line that stays behind is a "
                "straggler; see below what "
                "limits it.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_progress_ratio"))],
                size=(12, 9),
                unit="percentunit",
                links=MACHINES.links,
            ),
            MACHINES.loss(size=(12, 9)),
            table(
                "Machines now",
                "The slowest first. A click on one opens it.",
                [
                    (
                        f"max by (machine, state) (diskcast_receiver_state{{{M}}})",
                        "",
                        "short",
                    ),
                    (
                        f"max by (machine) (diskcast_receiver_progress_ratio{{{M}}})",
                        "Verified",
                        "percentunit",
                    ),
                    (f"max by (machine) (diskcast_receiver_loss_ratio{{{M}}})", "Loss", "percentunit"),
                    (f"max by (machine) (diskcast_receiver_rtt_seconds{{{M}}})", "Round trip", "s"),
                    (f"max by (machine) (diskcast_receiver_nacks_total{{{M}}})", "NACKs", "short"),
                    (f"max by (machine) (diskcast_receiver_written_bytes_total{{{M}}})", "Written", "bytes"),
                    (
                        f"max by (machine) (diskcast_receiver_rewritten_blocks{{{M}}})",
                        "Blocks rewritten",
                        "short",
                    ),
                ],
                {"machine": "Machine", "state": "State"},
                size=(16, 8),
                sort=("Verified", False),
                steps={"Loss": LOSS, "Blocks rewritten": GOOD_IS_NOTHING},
                links=[ROW_MACHINE],
            ),
            table(
                "Failed",
                "Machines that ended without all of the image, and why.",
                [(f"max by (machine, cause) (diskcast_receiver_failed{{{M}}})", "", "short")],
                {"machine": "Machine", "cause": "Cause"},
                size=(8, 8),
                links=[ROW_MACHINE],
            ),
            chart(
                "Written",
                "What each machine writes to its disk.",
                [MACHINES.line(MACHINES.rate("diskcast_receiver_written_bytes_total"))],
                unit="Bps",
                links=MACHINES.links,
            ),
            MACHINES.buffers(),
            MACHINES.dropped(),
            MACHINES.limited_by(),
            MACHINES.states(),
            MACHINES.stragglers(),
            chart(
                "Rate that it could take",
                "What each machine has shown that it can take; nothing is drawn while nothing has limited it.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_sustainable_rate_bytes_per_second"))],
                unit="Bps",
                points=True,
                links=MACHINES.links,
            ),
            chart(
                "Queues on the way",
                "Time that datagrams to each machine spent in queues: of switches, links, and its own.",
                [MACHINES.line(MACHINES.now("diskcast_receiver_queue_delay_seconds"))],
                unit="s",
                links=MACHINES.links,
            ),
            chart(
                "Loss bursts and interleaving",
                "Datagrams lost in a row, and how many blocks are sent together so that a lost burst costs "
                "each of them little.",
                [
                    MACHINES.line(MACHINES.now("diskcast_receiver_loss_burst_datagrams")),
                    query(f"max(diskcast_interleave_depth_blocks{{{C}}})", "blocks together"),
                ],
            ),
            row("Rate"),
            chart(
                "Sending rate",
                "What the sender paces to, and what really left. A gap means that the machine or its link "
                "can't keep up.",
                [
                    query(f"max(diskcast_rate_bytes_per_second{{{C}}})", "paced"),
                    query(f"max(diskcast_achieved_rate_bytes_per_second{{{C}}})", "achieved"),
                    query(f"max(rate(diskcast_sent_bytes_total{{{C}}}[$__rate_interval]))", "sent, counted"),
                ],
                size=(12, 8),
                unit="Bps",
            ),
            chart(
                "What limits the cast",
                "Share of the time for which each cause set the rate. Ceiling: the limit that was asked for; "
                "none: the rate "
                "climbs, or there is nothing to send.",
                [
                    query(
                        f"max by (cause, machine) (rate(diskcast_bottleneck_seconds_total{{{C}}}[$__rate_interval]))",
                        "{{cause}} {{machine}}",
                    )
                ],
                size=(12, 8),
                stacked=True,
            ),
            chart(
                "Datagrams a system call",
                "Many: the kernel segments for us. One: it can't, and the sender needs far more processor time.",
                [
                    query(
                        f"max(rate(diskcast_sent_datagrams_total{{{C}}}[$__rate_interval])) / "
                        f"max(rate(diskcast_send_calls_total{{{C}}}[$__rate_interval]))",
                        "datagrams a call",
                    ),
                    query(
                        f"max(rate(diskcast_send_queue_full_total{{{C}}}[$__rate_interval]))",
                        "waits for the interface/s",
                    ),
                ],
            ),
            chart(
                "Round trip",
                "The group's, which paces repairs, and each machine's.",
                [
                    query(f"max(diskcast_grtt_seconds{{{C}}})", "group"),
                    MACHINES.line(MACHINES.now("diskcast_receiver_rtt_seconds")),
                ],
                unit="s",
            ),
            chart(
                "Burst lateness",
                "How much after its time a burst left: the pacing's jitter.",
                [
                    *(
                        query(
                            f"histogram_quantile({share}, sum by (le) "
                            f"(rate(diskcast_burst_lateness_seconds_bucket{{{C}}}[$__rate_interval])))",
                            f"{words} of them",
                        )
                        for share, words in (("0.5", "half"), ("0.99", "99%"))
                    ),
                    query(
                        f"max(rate(diskcast_burst_lateness_seconds_sum{{{C}}}[$__rate_interval])) / "
                        f"max(rate(diskcast_burst_lateness_seconds_count{{{C}}}[$__rate_interval]))",
                        "mean",
                    ),
                ],
                unit="s",
            ),
            row("Repair"),
            chart(
                "Symbols sent, by cause",
                "Source: the image itself. Parity: sent before anybody asks. Repair: answers to NACKs.",
                [
                    query(
                        f"max by (cause) (rate(diskcast_sent_symbols_total{{{C}}}[$__rate_interval]))",
                        "{{cause}}",
                    )
                ],
                unit="pps",
                stacked=True,
            ),
            chart(
                "Overhead",
                "Parity and repair for each symbol of the image so far, and the parity that is sent now.",
                [
                    query(
                        f'sum(diskcast_sent_symbols_total{{{C}, cause!="source"}}) / '
                        f'sum(diskcast_sent_symbols_total{{{C}, cause="source"}})',
                        "sent so far",
                    ),
                    query(f"max(diskcast_parity_ratio{{{C}}})", "parity now"),
                ],
                unit="percentunit",
            ),
            chart(
                "Asked for by NACK",
                "Symbols that machines asked for, and NACK datagrams that arrived.",
                [
                    MACHINES.line(MACHINES.rate("diskcast_receiver_nacked_symbols_total")),
                    query(
                        f"max(rate(diskcast_nacks_received_total{{{C}}}[$__rate_interval]))", "NACK datagrams"
                    ),
                ],
                unit="pps",
            ),
            chart(
                "Blocks still wanted",
                "Blocks that the sweep has still to send.",
                [query(f"max(diskcast_wanted_blocks{{{C}}})", "blocks")],
            ),
            chart(
                "Sweep",
                "How far the sweep over the image has come, and its number.",
                [
                    query(f"max(diskcast_pass_progress_ratio{{{C}}})", "progress"),
                    query(f"max(diskcast_pass_index{{{C}}})", "number"),
                ],
            ),
            chart(
                "Joins",
                "Joins so far, those of returning machines included.",
                [query(f"max(diskcast_joins_total{{{C}}})", "joins")],
            ),
            row("Feedback"),
            chart(
                "Datagrams rejected by the sender",
                "Feedback that was dropped, by reason. Anything but nothing is worth a look: an old agent, or "
                "somebody else.",
                [
                    query(
                        f"max by (reason) (rate(diskcast_rejected_datagrams_total{{{C}}}[$__rate_interval]))",
                        "{{reason}}",
                    )
                ],
                size=(12, 8),
                unit="pps",
            ),
            chart(
                "Feedback",
                "What comes from the machines, and how often the sender asks for it.",
                [
                    query(
                        f"max(rate(diskcast_feedback_datagrams_total{{{C}}}[$__rate_interval]))", "datagrams"
                    ),
                    query(f"max(rate(diskcast_reports_received_total{{{C}}}[$__rate_interval]))", "reports"),
                    query(f"max(rate(diskcast_flushes_sent_total{{{C}}}[$__rate_interval]))", "flushes"),
                ],
                size=(12, 8),
                unit="pps",
            ),
        ],
        hours="15m",
    )
