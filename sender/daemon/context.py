"""The daemon's parts that the API serves."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sender.config.server_config import ServerConfig
from sender.daemon.boots.boot_decisions import BootDecisions
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.captures.upload_pace import UploadPace
from sender.daemon.cast_commands import CastCommands
from sender.daemon.check_in import CheckInHandler
from sender.daemon.enrolment_desk import EnrolmentDesk
from sender.daemon.event_feed import EventFeed
from sender.daemon.exports.image_exports import ImageExports
from sender.daemon.health import HealthMonitor
from sender.daemon.image_request_desk import ImageRequestDesk
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.live_state import LiveState
from sender.daemon.machine_access import MachineAccess
from sender.daemon.preflight_desk import PreflightDesk
from sender.daemon.presence import Presence
from sender.daemon.waking.machine_waker import MachineWaker
from sender.library.library import Library
from sender.library.upkeep.image_pruner import ImagePruner
from sender.library.upkeep.image_uploads import ImageUploads
from sender.metrics.daemon_metrics import DaemonMetrics
from sender.store.store import Store
from sender.store.write_behind import Recorder


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running daemon. Only the API's root and the composition root hold them all.

    Attributes:
        recorder: writes to the store later, while the database is unavailable.
        pruner: deletes old images.
        uploads: files of clients that become images.
        exports: files of other formats, made of images.
        registry: casts in memory.
        commands: commands of operators on casts.
        presence: machines that are switched on.
        waker: wakes machines by Wake-on-LAN.
        live_state: rooms and casts as they are now.
        feed: live events for subscribers.
        check_ins: answers to agents.
        access: secrets and revocations of machines.
        desk: claims of machines that enrol.
        boots: decisions about boots over the network.
        booting: machines that load the live system.
        image_requests: requests of machines to be imaged.
        captures: captures of machines' disks.
        preflight: machines judged for an image.
        upload_pace: rate and memory of all uploads together.
        started_at: start of this process.
        pin: pin of the daemon's certificate.
    """

    config: ServerConfig
    store: Store
    recorder: Recorder
    library: Library
    pruner: ImagePruner
    uploads: ImageUploads
    exports: ImageExports
    registry: CastRegistry
    commands: CastCommands
    presence: Presence
    waker: MachineWaker
    live_state: LiveState
    feed: EventFeed
    check_ins: CheckInHandler
    access: MachineAccess
    desk: EnrolmentDesk
    boots: BootDecisions
    booting: BootingMachines
    image_requests: ImageRequestDesk
    captures: CaptureDesk
    preflight: PreflightDesk
    upload_pace: UploadPace
    health: HealthMonitor
    metrics: DaemonMetrics
    started_at: datetime
    pin: str
