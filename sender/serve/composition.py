"""The composition root of the daemon: every part is built here, in order, from its collaborators."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from sender.config.server_config import ServerConfig
from sender.daemon.boots.boot_decisions import BootDecisions
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.captures.upload_opener import UploadOpener
from sender.daemon.captures.upload_pace import UploadPace
from sender.daemon.cast_commands import CastCommands
from sender.daemon.check_in import CheckInHandler
from sender.daemon.context import Services
from sender.daemon.enrolment_desk import EnrolmentDesk
from sender.daemon.event_feed import EventFeed
from sender.daemon.event_topics import OverviewTopic
from sender.daemon.exports.image_exports import ImageExports
from sender.daemon.health import HealthMonitor
from sender.daemon.image_request_desk import ImageRequestDesk
from sender.daemon.jobs.awaited_casts import AwaitedCasts
from sender.daemon.jobs.cast_executor import CastExecutor
from sender.daemon.jobs.cast_job import CastJob, EarlierRuns
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.daemon.jobs.owner import Owner
from sender.daemon.jobs.session_opener import SessionOpener
from sender.daemon.lease_acquirer import LeaseAcquirer
from sender.daemon.live_state import LiveState
from sender.daemon.machine_access import MachineAccess
from sender.daemon.patching.patch_maker import PatchMaker
from sender.daemon.preflight_desk import PreflightDesk
from sender.daemon.presence import Presence
from sender.daemon.supervisor import Supervisor
from sender.daemon.ticket_office import TicketOffice
from sender.daemon.waking.machine_waker import MachineWaker
from sender.daemon.waking.wake_run import WavePace
from sender.identity.certificate import Certificate
from sender.library.library import Library
from sender.library.upkeep.image_pruner import ImagePruner
from sender.library.upkeep.image_uploads import ImageUploads
from sender.metrics.daemon_metrics import DaemonMetrics, FleetSources
from sender.metrics.fleet_metrics import ImageJobs
from sender.store.records.boots import UnknownMachines
from sender.store.records.casts import Cast
from sender.store.records.machines import EnrolmentMode
from sender.store.store import Store
from sender.store.write_behind import Recorder


@dataclasses.dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a daemon, none of them started.

    Attributes:
        services: parts that the API serves.
        supervisor: leases and runs casts.
        owner: name of this run of the daemon in the database.
    """

    services: Services
    supervisor: Supervisor
    owner: Owner


def compose_daemon(
    config: ServerConfig, store: Store, recorder: Recorder, owner: Owner, certificate: Certificate
) -> Daemon:
    """Build the daemon's parts."""
    registry = CastRegistry(ended_kept_s=config.metrics.retention_s)
    library = Library(config.library, store)
    presence = Presence()
    waker = MachineWaker(store, recorder, presence, WavePace(config.wake.wave_size, config.wake.pause_s))
    access = MachineAccess(store, recorder, registry)
    desk = EnrolmentDesk(store, presence, access, EnrolmentMode(config.server.enrolment))
    tickets = TicketOffice(store)
    patches = PatchMaker(store, library)
    commands = CastCommands(store, library, recorder, registry, patches, owner)
    image_requests = ImageRequestDesk(store, library, commands, encrypt=config.casts.encrypt)
    health = HealthMonitor(store, recorder, library, registry, desk, image_requests, certificate)
    booting = BootingMachines(store, registry)
    captures = CaptureDesk(
        store,
        library,
        UploadOpener(library),
        registry.changes,
        config.library.folders[0],
        config.server.name,
        uploads_at_once=config.captures.uploads_at_once,
    )
    live_state = LiveState(store, registry, presence, booting, waker, captures)
    feed = EventFeed(
        store, registry, live_state, lambda: OverviewTopic(store, registry, presence, live_state, health)
    )
    ended = EndedMachines(store, registry)
    awaited = AwaitedCasts(registry, ended)
    preflight = PreflightDesk(store, library)
    check_ins = CheckInHandler(
        store, recorder, registry, presence, desk, tickets, ended, awaited, captures, preflight
    )
    boots = BootDecisions(store, awaited, booting, captures, UnknownMachines(config.server.unknown_machines))

    def make_job(cast: Cast, earlier: EarlierRuns) -> CastJob:
        return CastJob(cast, recorder, owner=owner, earlier=earlier)

    uploads = ImageUploads(store, library, allow_unsandboxed=config.library.allow_unsandboxed)
    exports = ImageExports(
        store, library, config.library.cache_directory / "exports", config.library.exports_bytes
    )
    sources = FleetSources(
        casts=registry.jobs_with_session,
        leases=lambda: sum(not job.cast.phase.ended for job in registry.jobs_with_session()),
        images=library.images,
        cache_limit_bytes=config.library.cache_bytes,
        online_room_ids=lambda: [present.machine.room_id for present in presence.online],
        pending_writes=lambda: recorder.pending_count,
        problems=health.problems,
        event_clients=lambda: feed.subscriber_count,
        machines_booting=lambda: booting.count,
        image_jobs=lambda: ImageJobs(
            captures.active_states(),
            uploads.active_states(),
            exports.active_states(),
            captures.silent_s(),
            exports.used_bytes(),
        ),
    )
    sessions = SessionOpener(config, store, registry, certificate, is_revoked=access.is_revoked)
    supervisor = Supervisor(
        store,
        registry,
        LeaseAcquirer(store, recorder, registry, owner, library, sites=config.server.sites),
        commands,
        CastExecutor(store, library, registry, sessions, tickets, waker, patches, make_job),
        casts_at_once=config.network.casts_at_once,
    )
    services = Services(
        config=config,
        store=store,
        recorder=recorder,
        library=library,
        pruner=ImagePruner(store, library),
        uploads=uploads,
        exports=exports,
        registry=registry,
        commands=commands,
        presence=presence,
        waker=waker,
        live_state=live_state,
        feed=feed,
        check_ins=check_ins,
        access=access,
        desk=desk,
        boots=boots,
        booting=booting,
        image_requests=image_requests,
        captures=captures,
        preflight=preflight,
        upload_pace=UploadPace(config.captures.rate_ceiling_bytes_per_s),
        health=health,
        metrics=DaemonMetrics(config.server.name, store, sources),
        started_at=datetime.now(UTC),
        pin=certificate.pin,
    )
    return Daemon(services, supervisor, owner)
