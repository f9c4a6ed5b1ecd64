"""The overview: all casts, rooms and machines, who is in trouble and why, and how the daemons are."""

from __future__ import annotations

from docs.dashboards.panels import (
    GOOD_IS_NOTHING,
    GOOD_IS_ONE,
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
from docs.dashboards.shared import FULL, LOSS, SLOW_S, R

RUNNING = f'diskcast_cast_state{{{R}, state="casting"}} == 1'
TO_CAST = link("Open the cast", "cast", cast=cell("Cast"))
TO_MACHINE = link("Open the machine", "machine", room=cell("Room"), machine=cell("Machine"))
OF_CAST = "cast, image, room"
WORST = (
    f"bottomk(20, max by ({OF_CAST}, machine) (diskcast_receiver_progress_ratio{{{R}}}) "
    f"and on (cast, machine) diskcast_receiver_bottleneck{{{R}}})"
)
"""Machines that a cast works for now, the furthest behind."""
AMONG_WORST = f"and on (cast, machine) {WORST}"


def fleet() -> Json:
    return dashboard(
        "fleet",
        "diskcast: overview",
        "All casts, rooms and machines, who is in trouble and why, and how the daemons are.",
        [variable("room", "Room", "Rooms to show.", "label_values(diskcast_cast_info, room)")],
        [
            row("Now"),
            stat(
                "Casts running",
                "Casts that send data to their machines now.",
                [query(f"count(max by (cast) ({RUNNING})) or vector(0)", "casts")],
            ),
            stat(
                "Machines at work",
                "Machines that have joined a cast and aren't done.",
                [
                    query(
                        f'sum(max by ({OF_CAST}, state) (diskcast_receivers{{{R}, state=~"joined|receiving"}}))',
                        "machines",
                    )
                ],
            ),
            stat(
                "Machines done",
                "Machines that have verified every byte, in casts that run or ended lately.",
                [query(f'sum(max by ({OF_CAST}) (diskcast_receivers{{{R}, state="complete"}}))', "machines")],
            ),
            stat(
                "Machines failed",
                "Machines that ended without all of the image, in casts that run or ended lately. Below it says which.",
                [query(f"sum(max by ({OF_CAST}, cause) (diskcast_receiver_failures{{{R}}}))", "machines")],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Alerts",
                "Alerts of diskcast's rules that fire now.",
                [query('count(ALERTS{alertname=~"Diskcast.*", alertstate="firing"}) or vector(0)', "firing")],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Sent",
                "What all senders put on the wire now.",
                [query(f"sum(rate(diskcast_sent_bytes_total{{{R}}}[$__rate_interval]))", "sent")],
                unit="Bps",
            ),
            row("Casts"),
            table(
                "Casts now",
                "Casts that run, and those that ended lately. A click on one opens it.",
                [
                    (
                        f"max by ({OF_CAST}, state) (diskcast_cast_state{{{R}}} == 1)",
                        "",
                        "short",
                    ),
                    (
                        f"avg by ({OF_CAST}) (diskcast_receiver_progress_ratio{{{R}}})",
                        "Verified",
                        "percentunit",
                    ),
                    (
                        f"min by ({OF_CAST}) (diskcast_receiver_progress_ratio{{{R}}})",
                        "Slowest",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}) (rate(diskcast_sent_bytes_total{{{R}}}[$__rate_interval]))",
                        "Rate",
                        "Bps",
                    ),
                    (f"max by ({OF_CAST}) (diskcast_cast_elapsed_seconds{{{R}}})", "Time", "s"),
                    (
                        f'max by ({OF_CAST}) (diskcast_receivers{{{R}, state="complete"}})',
                        "Done",
                        "short",
                    ),
                    (
                        f"sum by ({OF_CAST}) (diskcast_receiver_failures{{{R}}})",
                        "Failed",
                        "short",
                    ),
                ],
                {"room": "Room", "image": "Image", "cast": "Cast", "state": "State"},
                size=(24, 7),
                sort=("Verified", False),
                steps={"Failed": GOOD_IS_NOTHING},
                links=[TO_CAST],
            ),
            chart(
                "Progress",
                "Each cast's share of blocks that are written, read back and found right, on average of its machines.",
                [
                    query(
                        f"avg by (cast, room) (diskcast_receiver_progress_ratio{{{R}}})", "{{room}} {{cast}}"
                    )
                ],
                unit="percentunit",
                links=[link("Open the cast", "cast", cast=field("cast"))],
            ),
            chart(
                "Rate",
                "What each cast puts on the wire.",
                [
                    query(
                        f"max by (cast, room) (rate(diskcast_sent_bytes_total{{{R}}}[$__rate_interval]))",
                        "{{room}} {{cast}}",
                    )
                ],
                unit="Bps",
                stacked=True,
            ),
            chart(
                "What limits the casts",
                "Share of the time for which each cause set the rate, summed over casts. Ceiling: the limit "
                "that was asked "
                "for; none: the rate climbs, or there is nothing to send.",
                [
                    query(
                        f"sum by (cause) (rate(diskcast_bottleneck_seconds_total{{{R}}}[$__rate_interval]))",
                        "{{cause}}",
                    )
                ],
                stacked=True,
            ),
            row("Who is in trouble"),
            table(
                "Machines that failed",
                "Machines that ended without all of the image, and why: verification (the disk doesn't keep "
                "what is written), "
                "storage (it fails), target (it was refused), session, lost (silent), dropped (too slow), cancelled.",
                [(f"max by ({OF_CAST}, machine, cause) (diskcast_receiver_failed{{{R}}})", "", "short")],
                {
                    "room": "Room",
                    "machine": "Machine",
                    "cause": "Cause",
                    "image": "Image",
                    "cast": "Cast",
                },
                links=[TO_MACHINE, TO_CAST],
            ),
            table(
                "Machines that keep up worst",
                "The twenty that are furthest behind in casts that run. Behind with a low loss and the "
                "bottleneck disk: a slow "
                "disk; with a high loss: a bad cable or port.",
                [
                    (
                        WORST,
                        "Verified",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}, machine) (diskcast_receiver_loss_ratio{{{R}}}) {AMONG_WORST}",
                        "Loss",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}, machine, bottleneck) (diskcast_receiver_bottleneck{{{R}}}) {AMONG_WORST}",
                        "",
                        "short",
                    ),
                ],
                {
                    "room": "Room",
                    "machine": "Machine",
                    "bottleneck": "Limited by",
                    "cast": "Cast",
                    "image": "Image",
                },
                sort=("Verified", False),
                steps={"Loss": LOSS},
                links=[TO_MACHINE, TO_CAST],
            ),
            chart(
                "Failures by cause",
                "Machines of casts that run or ended lately that ended without all of the image.",
                [query(f"sum by (cause) (diskcast_receiver_failures{{{R}}})", "{{cause}}")],
                size=(12, 7),
                stacked=True,
            ),
            chart(
                "Highest loss",
                "The ten machines at work that lose most of what is sent. From 5 % on it is worth a look at the "
                "cable, the port and "
                "the switch.",
                [
                    query(
                        f"topk(10, max by (machine, room) (diskcast_receiver_loss_ratio{{{R}}} "
                        f"and on (cast, machine) diskcast_receiver_bottleneck{{{R}}}))",
                        "{{room}} {{machine}}",
                    )
                ],
                size=(12, 7),
                unit="percentunit",
                steps=LOSS,
                links=[link("Open the machine", "machine", room=field("room"), machine=field("machine"))],
            ),
            row("Rooms and images, as the daemons know them"),
            chart(
                "Machines online",
                "Machines of each room whose agents have checked in lately.",
                [
                    query(
                        f"max by (room) (diskcast_machines_online{{{R}}})",
                        "{{room}}",
                    )
                ],
            ),
            chart(
                "Machines known",
                "Machines of each room in the database.",
                [query(f"max by (room) (diskcast_machines_known{{{R}}})", "{{room}}")],
            ),
            chart(
                "Casts that haven't ended",
                "Planned, gathering their machines, casting, or with only stragglers left.",
                [query("max by (phase) (diskcast_casts)", "{{phase}}")],
                stacked=True,
            ),
            chart(
                "Images",
                "Images in the library, by state.",
                [query("max by (instance, state) (diskcast_images)", "{{instance}} {{state}}")],
            ),
            chart(
                "Image cache",
                "What copies of remote images take, and what they may.",
                [
                    query("diskcast_image_cache_bytes", "{{instance}}"),
                    query("diskcast_image_cache_limit_bytes", "{{instance}} limit"),
                ],
                unit="bytes",
            ),
            chart(
                "Sent since the start",
                "Bytes of data that each daemon has sent, in all of its casts.",
                [query("diskcast_daemon_sent_bytes_total", "{{instance}}")],
                unit="bytes",
            ),
            row("Daemons"),
            stat(
                "Daemons",
                "Whether Prometheus reaches each daemon.",
                [query('up{job="diskcast"}', "{{instance}}")],
                steps=GOOD_IS_ONE,
            ),
            stat(
                "Version",
                "What each daemon is.",
                [query("diskcast_build_info", "{{name}} {{version}}")],
                names_only=True,
            ),
            stat(
                "Database",
                "1: the last attempt to use the database succeeded. While it is down, casts go on.",
                [query("diskcast_database_up", "{{instance}}")],
                steps=GOOD_IS_ONE,
            ),
            stat(
                "Problems",
                "What the daemons say that somebody should look at; their dashboard says what to do.",
                [query("sum by (kind) (diskcast_problems)", "{{kind}}")],
                size=(8, 4),
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Schedules failing",
                "Schedules whose last cast couldn't be planned.",
                [query("max(diskcast_schedules_failing)", "schedules")],
                steps=GOOD_IS_NOTHING,
            ),
            chart(
                "Requests",
                "Answers of the API by status. 5xx is an error of the daemon's.",
                [
                    query(
                        "sum by (status) (rate(diskcast_api_requests_total[$__rate_interval]))", "{{status}}"
                    )
                ],
                unit="reqps",
                stacked=True,
            ),
            chart(
                "Time to answer",
                "How long the API takes, check-ins and live events left out: those wait on purpose.",
                [
                    query(
                        f"histogram_quantile({share}, sum by (le) (rate(diskcast_api_request_seconds_bucket"
                        '{route!~".*/(check-in|events)"}[$__rate_interval])))',
                        f"{float(share):.0%} of them",
                    )
                    for share in ("0.5", "0.99")
                ],
                unit="s",
                steps=SLOW_S,
            ),
            chart(
                "Event loop",
                "How much later than it should each daemon comes to its next task: above a half second, pages and "
                "machines notice.",
                [
                    query(
                        "histogram_quantile(0.99, sum by (instance, le) "
                        "(rate(diskcast_event_loop_lag_seconds_bucket[$__rate_interval])))",
                        "{{instance}}",
                    )
                ],
                unit="s",
                steps=SLOW_S,
            ),
            chart(
                "Check-ins and watchers",
                "How often agents check in a second, and who follows live events.",
                [
                    query(
                        "sum by (instance) (rate(diskcast_check_ins_total[$__rate_interval]))",
                        "{{instance}} check-ins/s",
                    ),
                    query("diskcast_event_clients", "{{instance}} watchers"),
                ],
            ),
            chart(
                "Casts of each daemon",
                "Casts that each daemon runs, and records that wait for the database.",
                [
                    query("diskcast_leases", "{{instance}} casts"),
                    query("diskcast_pending_writes", "{{instance}} waiting records"),
                ],
            ),
            chart(
                "Processor",
                "Cores that each daemon's process keeps busy.",
                [
                    query(
                        'rate(process_cpu_seconds_total{job="diskcast"}[$__rate_interval])',
                        "{{instance}}",
                    )
                ],
            ),
            chart(
                "Memory",
                "Memory of each daemon's process.",
                [query('process_resident_memory_bytes{job="diskcast"}', "{{instance}}")],
                size=(12, 8),
                unit="bytes",
            ),
            chart(
                "Open files",
                "Share of the file descriptors that each daemon's process may have.",
                [
                    query(
                        'process_open_fds{job="diskcast"} / process_max_fds{job="diskcast"}',
                        "{{instance}}",
                    )
                ],
                size=(12, 8),
                unit="percentunit",
                steps=FULL,
            ),
        ],
        hours="1h",
    )
