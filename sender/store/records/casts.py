"""Casts: plans, progress, results, timelines, and schedules that plan casts."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime

from protocol.constants import SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Machine


class CastPhase(enum.StrEnum):
    """Phase of a cast."""

    PLANNED = "planned"
    """Waiting for its start time, or for a free daemon."""
    GATHERING = "gathering"
    CASTING = "casting"
    TAIL = "tail"
    """Only stragglers are left."""
    DONE = "done"
    """Every required machine has verified every byte."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True for the final phases."""
        return self in (CastPhase.DONE, CastPhase.FAILED, CastPhase.CANCELLED)

    @property
    def live(self) -> bool:
        """True while a daemon communicates with the room."""
        return self in (CastPhase.GATHERING, CastPhase.CASTING, CastPhase.TAIL)


class StartMode(enum.StrEnum):
    """Condition for the start of the data after gathering."""

    JOINED = "joined"
    """``wait_for`` machines have joined, or ``max_wait_s`` is over."""
    MANUAL = "manual"
    """The operator starts it."""


class Command(enum.StrEnum):
    """An operator's command for a cast; stored until the daemon that runs the cast has carried it out."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


@dataclasses.dataclass(frozen=True, slots=True)
class CastPlan:
    """A cast as requested.

    Attributes:
        image_id: image to cast.
        room_id: room of the machines; None: the machines of ``machine_ids``, of any room.
        machine_ids: only these machines of the room (or of all rooms); empty: all of them.
        name: name for people.
        start: condition for the start of the data.
        start_at: the cast stays planned until then.
        wait_for: machines that must have joined; None: all of the room or of ``machine_ids`` (1 if there are neither).
        max_wait_s: with ``start=joined``: start after this time with the machines that have joined; None: no limit.
        rate_bytes_per_s: a fixed rate; None: automatic.
        rate_max_bytes_per_s: ceiling of the automatic rate.
        share: leave other traffic its share.
        slow: ``wait``, ``demote`` or ``drop``, as ``diskcast send --slow``.
        encrypt: encrypt the data on the network.
        wake: wake the machines when they are to gather.
        plain: cast the image as it is, without the machine patches of rooms' templates.
        latest_of: name whose newest version each cast of a schedule uses; empty: always the image of ``image_id``.
    """

    image_id: str
    room_id: str | None = None
    machine_ids: tuple[str, ...] = ()
    name: str = ""
    start: StartMode = StartMode.JOINED
    start_at: datetime | None = None
    wait_for: int | None = None
    max_wait_s: float | None = 300.0
    rate_bytes_per_s: float | None = None
    rate_max_bytes_per_s: float | None = None
    share: bool = False
    slow: str = "demote"
    slow_below: float = SLOW_BELOW_DEFAULT
    slow_for_s: float = SLOW_FOR_S_DEFAULT
    encrypt: bool = False
    wake: bool = False
    plain: bool = False
    latest_of: str = ""

    def includes(self, machine: Machine) -> bool:
        """Return whether the cast is planned for this machine."""
        if self.machine_ids:
            return machine.machine_id in self.machine_ids
        return self.room_id is not None and machine.room_id == self.room_id


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """A cast: its plan, its progress and, at the end, its summary.

    Attributes:
        cast_id: eight hexadecimal digits, the same on the wire, in logs, metrics and file names.
        image_name: name of the image, kept for history.
        required_count: machines that must verify every byte for the cast to be done.
        owner: daemon that runs or ran the cast; empty before a daemon has taken it.
        control_pin: pin of the certificate at ``control_url``; empty without TLS.
        created_by: name of the token, ``local``, or ``schedule NAME``.
        run_count: number of daemons' runs; 2 or more after a restart or a takeover.
        seconds: time from the first image data to the end, earlier runs included.
        progress: progress of the slowest machine, stragglers aside, 0..1.
        reason: reason for its end, for people.
        image_signer: id of the key that signed the image when the cast was planned; empty for an unsigned image.
        image_version: signed version of the image then, below which its machines accept none; empty as above.
    """

    cast_id: str
    plan: CastPlan
    image_name: str
    raw_bytes: int
    phase: CastPhase
    paused: bool
    owner: str
    group: str
    port: int
    control_url: str
    required_count: int
    run_count: int
    created_at: datetime
    created_by: str
    schedule_id: str | None
    gathering_at: datetime | None
    casting_at: datetime | None
    ended_at: datetime | None
    reason: str
    seconds: float
    bytes_sent: int
    progress: float
    joined_count: int
    complete_count: int
    failed_count: int
    control_pin: str = ""
    image_signer: str = ""
    image_version: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CastMachine:
    """Result of a cast on one machine: a line of history.

    Attributes:
        machine_id: None for an unknown machine.
        state: ``assigned``, ``absent``, or as the cast's sender reports: ``joined``, ``receiving``, ``complete``,
            ``failed``, ``lost``, ``dropped``.
        bottleneck: its last bottleneck.
        error: reason for an incomplete result; empty for a complete one.
        exit_code: exit code of the agent, if it reported one.
        bytes_verified: raw bytes that were read back from its disk and verified.
        bytes_kept: verified bytes that its disk had before the cast.
        seconds: time from its join to its end.
        patch_id: id of the machine patch that is on its disk with the image, 64 hexadecimal digits; empty without one.
        unsigned_allowed: True if the agent accepted an image without a trusted signature, as its options allow.
    """

    cast_id: str
    machine_id: str | None
    name: str
    address: str
    state: MachineState
    error: str
    exit_code: int | None
    bottleneck: str
    progress: float
    bytes_verified: int
    bytes_kept: int
    blocks_rewritten: int
    seconds: float
    rate_bytes_per_s: float
    loss: float
    nacks_count: int
    socket_drops_count: int
    demoted: bool
    joined_at: datetime | None
    ended_at: datetime | None
    unsigned_allowed: bool = False
    patch_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryLine:
    """A :class:`CastMachine` with the description of its cast: a line of the record for auditors.

    Attributes:
        patch_id: id of the machine patch that is on its disk with the image; empty for the image alone.
        machine_digest: BLAKE3 of image id and patch id, which names the content of its customised disk; empty as above.
    """

    cast_id: str
    cast_name: str
    created_by: str
    image_id: str
    image_name: str
    room_id: str | None
    machine_id: str | None
    machine_name: str
    serial: str
    asset_tag: str
    state: MachineState
    error: str
    exit_code: int | None
    bytes_verified: int
    bytes_kept: int
    blocks_rewritten: int
    seconds: float
    loss: float
    joined_at: datetime | None
    ended_at: datetime | None
    image_signer: str = ""
    image_version: str = ""
    unsigned_allowed: bool = False
    patch_id: str = ""
    machine_digest: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TimelinePoint:
    """A second of a cast, for charts.

    Attributes:
        at_s: seconds since the start of gathering.
        rate_bytes_per_s: rate of sent bytes.
        goodput_bytes_per_s: rate of written bytes, the mean of the machines.
        loss: loss of the machines of the main group, the mean, 0..1.
        parity: proactive repair symbols per source symbol.
        progress: as :attr:`Cast.progress`.
        bottleneck: cause of the rate, for people.
    """

    at_s: float
    rate_bytes_per_s: float
    goodput_bytes_per_s: float
    loss: float
    parity: float
    progress: float
    active_count: int
    complete_count: int
    bottleneck: str


@dataclasses.dataclass(frozen=True, slots=True)
class CastRequest:
    """A command for a cast that another daemon runs.

    Attributes:
        actor: requester, as in :attr:`AuditEntry.actor`.
        reason: the operator's reason; empty for none.
    """

    cast_id: str
    command: Command
    actor: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CastEvent:
    """An event of a cast, for its timeline.

    Attributes:
        kind: as in the JSON lines of ``diskcast send``: ``receiver_joined``, ``casting_started`` …, and ``paused``,
            ``resumed``, ``taken_over``, ``cancelled``.
        machine: name of the machine, or empty.
    """

    at: datetime
    kind: str
    machine: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A cast that is planned again and again.

    Attributes:
        cron: five fields, as cron(5).
        time_zone: IANA name of the time zone for ``cron``.
        plan: plan of each cast; its ``start_at`` isn't used.
        next_at: time of the next cast; None while the schedule is disabled.
    """

    schedule_id: str
    name: str
    cron: str
    time_zone: str
    plan: CastPlan
    enabled: bool
    created_at: datetime
    next_at: datetime | None
    last_cast_id: str | None
    problem: str = ""
