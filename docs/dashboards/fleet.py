"""The overview dashboard: casts, rooms, machines with problems, and daemons."""

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
from docs.dashboards.shared import FULL, LOSS, ROOM, SLOW_S

RUNNING = f'diskcast_cast_state{{{ROOM}, state="casting"}} == 1'
TO_CAST = link("Open the cast", "cast", cast=cell("Cast"))
TO_MACHINE = link("Open the machine", "machine", room=cell("Room"), machine=cell("Machine"))
OF_CAST = "cast, image, room"
WORST = (
    f"bottomk(20, max by ({OF_CAST}, machine) (diskcast_receiver_progress_ratio{{{ROOM}}}) "
    f"and on (cast, machine) diskcast_receiver_bottleneck{{{ROOM}}})"
)
"""The machines with the least progress in running casts."""
IN_WORST = f"and on (cast, machine) {WORST}"


def fleet() -> Json:
    return dashboard(
        "fleet",
        "diskcast: overview",
        "All casts and rooms, machines with problems and their causes, and the state of the daemons.",
        [variable("room", "Room", "Rooms to show.", "label_values(diskcast_cast_info, room)")],
        [
            row("Now"),
            stat(
                "Casts running",
                "Casts that are sending data.",
                [query(f"count(max by (cast) ({RUNNING})) or vector(0)", "casts")],
            ),
            stat(
                "Machines at work",
                "Machines that joined a cast and aren't done.",
                [
                    query(
                        f'sum(max by ({OF_CAST}, state) (diskcast_receivers{{{ROOM}, state=~"joined|receiving"}}))',
                        "machines",
                    )
                ],
            ),
            stat(
                "Machines done",
                "Machines that verified every byte, in casts that run or ended recently.",
                [
                    query(
                        f'sum(max by ({OF_CAST}) (diskcast_receivers{{{ROOM}, state="complete"}}))',
                        "machines",
                    )
                ],
            ),
            stat(
                "Machines failed",
                "Machines that weren't imaged completely, in casts that run or ended recently. They are listed below.",
                [query(f"sum(max by ({OF_CAST}, cause) (diskcast_receiver_failures{{{ROOM}}}))", "machines")],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Alerts",
                "Firing alerts of diskcast's rules.",
                [query('count(ALERTS{alertname=~"Diskcast.*", alertstate="firing"}) or vector(0)', "firing")],
                steps=GOOD_IS_NOTHING,
            ),
            stat(
                "Sent",
                "Rate at which all senders transmit.",
                [query(f"sum(rate(diskcast_sent_bytes_total{{{ROOM}}}[$__rate_interval]))", "sent")],
                unit="Bps",
            ),
            row("Casts"),
            table(
                "Casts now",
                "Casts that run or ended recently. Click a cast to open its dashboard.",
                [
                    (
                        f"max by ({OF_CAST}, state) (diskcast_cast_state{{{ROOM}}} == 1)",
                        "",
                        "short",
                    ),
                    (
                        f"avg by ({OF_CAST}) (diskcast_receiver_progress_ratio{{{ROOM}}})",
                        "Verified",
                        "percentunit",
                    ),
                    (
                        f"min by ({OF_CAST}) (diskcast_receiver_progress_ratio{{{ROOM}}})",
                        "Slowest",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}) (rate(diskcast_sent_bytes_total{{{ROOM}}}[$__rate_interval]))",
                        "Rate",
                        "Bps",
                    ),
                    (f"max by ({OF_CAST}) (diskcast_cast_elapsed_seconds{{{ROOM}}})", "Time", "s"),
                    (
                        f'max by ({OF_CAST}) (diskcast_receivers{{{ROOM}, state="complete"}})',
                        "Done",
                        "short",
                    ),
                    (
                        f"sum by ({OF_CAST}) (diskcast_receiver_failures{{{ROOM}}})",
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
                "Share of the needed blocks that were written, read back and found correct: mean of each cast.",
                [
                    query(
                        f"avg by (cast, room) (diskcast_receiver_progress_ratio{{{ROOM}}})",
                        "{{room}} {{cast}}",
                    )
                ],
                unit="percentunit",
                links=[link("Open the cast", "cast", cast=field("cast"))],
            ),
            chart(
                "Rate",
                "Rate at which each cast transmits.",
                [
                    query(
                        f"max by (cast, room) (rate(diskcast_sent_bytes_total{{{ROOM}}}[$__rate_interval]))",
                        "{{room}} {{cast}}",
                    )
                ],
                unit="Bps",
                stacked=True,
            ),
            chart(
                "Bottlenecks of the casts",
                "Share of time that each bottleneck limited the rate, summed over casts. Ceiling: the configured "
                "limit. None: the rate rises, or there is nothing to send.",
                [
                    query(
                        f"sum by (cause) (rate(diskcast_bottleneck_seconds_total{{{ROOM}}}[$__rate_interval]))",
                        "{{cause}}",
                    )
                ],
                stacked=True,
            ),
            row("Machines with problems"),
            table(
                "Machines that failed",
                "Machines that weren't imaged completely, and the cause: verification (the disk returns wrong data), "
                "storage (the disk fails), target (the disk was refused), session, lost (silent), dropped (too slow), "
                "cancelled.",
                [(f"max by ({OF_CAST}, machine, cause) (diskcast_receiver_failed{{{ROOM}}})", "", "short")],
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
                "Slowest machines",
                "The twenty machines with the least progress in running casts. Low loss and the bottleneck disk: a "
                "slow disk. High loss: a bad cable or port.",
                [
                    (
                        WORST,
                        "Verified",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}, machine) (diskcast_receiver_loss_ratio{{{ROOM}}}) {IN_WORST}",
                        "Loss",
                        "percentunit",
                    ),
                    (
                        f"max by ({OF_CAST}, machine, bottleneck) (diskcast_receiver_bottleneck{{{ROOM}}}) {IN_WORST}",
                        "",
                        "short",
                    ),
                ],
                {
                    "room": "Room",
                    "machine": "Machine",
                    "bottleneck": "Bottleneck",
                    "cast": "Cast",
                    "image": "Image",
                },
                sort=("Verified", False),
                steps={"Loss": LOSS},
                links=[TO_MACHINE, TO_CAST],
            ),
            chart(
                "Failures by cause",
                "Machines that weren't imaged completely, in casts that run or ended recently, by cause.",
                [query(f"sum by (cause) (diskcast_receiver_failures{{{ROOM}}})", "{{cause}}")],
                size=(12, 7),
                stacked=True,
            ),
            chart(
                "Highest loss",
                "The ten machines at work with the highest loss. Above 5 %, check the cable, the port and the switch.",
                [
                    query(
                        f"topk(10, max by (machine, room) (diskcast_receiver_loss_ratio{{{ROOM}}} "
                        f"and on (cast, machine) diskcast_receiver_bottleneck{{{ROOM}}}))",
                        "{{room}} {{machine}}",
                    )
                ],
                size=(12, 7),
                unit="percentunit",
                steps=LOSS,
                links=[link("Open the machine", "machine", room=field("room"), machine=field("machine"))],
            ),
            row("Rooms and images"),
            chart(
                "Machines online",
                "Machines of each room whose agents have checked in recently.",
                [
                    query(
                        f"max by (room) (diskcast_machines_online{{{ROOM}}})",
                        "{{room}}",
                    )
                ],
            ),
            chart(
                "Machines known",
                "Machines of each room in the database.",
                [query(f"max by (room) (diskcast_machines_known{{{ROOM}}})", "{{room}}")],
            ),
            chart(
                "Open casts",
                "Casts that haven't ended, by phase: planned, gathering machines, casting, or finishing stragglers.",
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
                "Space that copies of remote images use, and its limit.",
                [
                    query("diskcast_image_cache_bytes", "{{instance}}"),
                    query("diskcast_image_cache_limit_bytes", "{{instance}} limit"),
                ],
                unit="bytes",
            ),
            chart(
                "Sent since start",
                "Bytes that each daemon has sent, in all of its casts.",
                [query("diskcast_daemon_sent_bytes_total", "{{instance}}")],
                unit="bytes",
            ),
            row("Captures, uploads and exports"),
            chart(
                "Image jobs",
                "Captures, uploads and exports that haven't ended, by state. A planned capture waits for its machine.",
                [
                    query(
                        "sum by (kind, state) (diskcast_image_jobs) > 0 or sum by (kind) (diskcast_image_jobs)",
                        "{{kind}} {{state}}",
                    )
                ],
            ),
            chart(
                "Received",
                "Rate at which stored blocks of captures and parts of uploads arrive.",
                [
                    query(
                        "sum by (kind) (rate(diskcast_image_job_received_bytes_total[$__rate_interval]))",
                        "{{kind}}",
                    )
                ],
                unit="Bps",
                stacked=True,
            ),
            chart(
                "Time without progress",
                "Of the capture that is stuck for longest. Above five minutes, its machine is off, its disk hangs, or "
                "the network is broken.",
                [query("diskcast_capture_silent_seconds", "{{instance}}")],
                unit="s",
            ),
            chart(
                "Failed jobs and rejected blocks",
                "Failed captures, uploads and exports per minute, and blocks that ended a capture: damaged on the way, "
                "or changed between the two reads of the disk.",
                [
                    query(
                        "60 * sum by (kind) (rate(diskcast_image_job_failures_total[$__rate_interval]))",
                        "failed {{kind}}",
                    ),
                    query(
                        "60 * sum by (reason) (rate(diskcast_capture_rejected_blocks_total[$__rate_interval]))",
                        "{{reason}} blocks",
                    ),
                ],
                size=(12, 8),
            ),
            chart(
                "Exported files",
                "Space that exported files take until they are removed.",
                [query("diskcast_image_export_bytes", "{{instance}}")],
                size=(12, 8),
                unit="bytes",
            ),
            row("Daemons"),
            stat(
                "Daemons",
                "1: Prometheus reaches the daemon. 0: it doesn't.",
                [query('up{job="diskcast"}', "{{instance}}")],
                steps=GOOD_IS_ONE,
            ),
            stat(
                "Version",
                "Name and version of each daemon.",
                [query("diskcast_build_info", "{{name}} {{version}}")],
                names_only=True,
            ),
            stat(
                "Database",
                "1: the last attempt to use the database succeeded. 0: it is unavailable; casts continue.",
                [query("diskcast_database_up", "{{instance}}")],
                steps=GOOD_IS_ONE,
            ),
            stat(
                "Problems",
                "Problems that the daemons report; the dashboard of the daemon shows how to fix them.",
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
                "Responses of the API by status. 5xx is an error in the daemon.",
                [
                    query(
                        "sum by (status) (rate(diskcast_api_requests_total[$__rate_interval]))", "{{status}}"
                    )
                ],
                unit="reqps",
                stacked=True,
            ),
            chart(
                "Rejections",
                "Rejected connections and requests by reason: wrong tokens, idle or slow clients, full servers.",
                [
                    query(
                        "sum by (api, reason) (rate(diskcast_http_rejections_total[$__rate_interval])) > 0",
                        "{{api}} {{reason}}",
                    )
                ],
                unit="reqps",
                stacked=True,
            ),
            chart(
                "Response time",
                "Response time of the API, without check-ins and live events, which wait on purpose.",
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
                "Delay of each daemon's event loop. Above half a second, browsers and agents notice it.",
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
                "Check-ins and event clients",
                "Check-ins of agents per second, and clients that follow live events.",
                [
                    query(
                        "sum by (instance) (rate(diskcast_check_ins_total[$__rate_interval]))",
                        "{{instance}} check-ins/s",
                    ),
                    query("diskcast_event_clients", "{{instance}} event clients"),
                ],
            ),
            chart(
                "Casts of each daemon",
                "Casts that each daemon runs, and records that wait to be saved to the database.",
                [
                    query("diskcast_leases", "{{instance}} casts"),
                    query("diskcast_pending_writes", "{{instance}} waiting records"),
                ],
            ),
            chart(
                "CPU",
                "CPU cores that each daemon uses.",
                [
                    query(
                        'rate(process_cpu_seconds_total{job="diskcast"}[$__rate_interval])',
                        "{{instance}}",
                    )
                ],
            ),
            chart(
                "Memory",
                "Resident memory of each daemon.",
                [query('process_resident_memory_bytes{job="diskcast"}', "{{instance}}")],
                size=(12, 8),
                unit="bytes",
            ),
            chart(
                "Open files",
                "Share of the file descriptors that each daemon may open.",
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
            chart(
                "Boots over the network",
                "Boots per minute by the system and the reason, and machines that load the live system now.",
                [
                    query(
                        "60 * sum by (action, reason) (rate(diskcast_boots_total[$__rate_interval]))",
                        "{{action}}: {{reason}}",
                    ),
                    query("max(diskcast_machines_booting)", "booting now"),
                ],
                size=(12, 8),
            ),
            chart(
                "Refused images and boot tokens",
                "Images that machines refused by their trust, and refused boot tokens.",
                [
                    query(
                        "sum by (reason) (increase(diskcast_image_refusals_total[$__rate_interval]))",
                        "image {{reason}}",
                    ),
                    query(
                        "sum by (reason) (increase(diskcast_boot_token_refusals_total[$__rate_interval]))",
                        "boot token {{reason}}",
                    ),
                ],
                size=(12, 8),
                steps=GOOD_IS_NOTHING,
            ),
        ],
        hours="1h",
    )
