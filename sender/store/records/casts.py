"""Casts: plans, progress, results, timelines, and schedules that plan casts."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime

from protocol.constants import SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Machine


class CastPhase(enum.StrEnum):
    """A cast's life."""

    PLANNED = "planned"
    """It waits for its time, or for a daemon that is free."""
    GATHERING = "gathering"
    CASTING = "casting"
    TAIL = "tail"
    """Only stragglers are left."""
    DONE = "done"
    """Every machine that was asked for verified every byte."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (CastPhase.DONE, CastPhase.FAILED, CastPhase.CANCELLED)

    @property
    def live(self) -> bool:
        """Whether a daemon speaks to the room."""
        return self in (CastPhase.GATHERING, CastPhase.CASTING, CastPhase.TAIL)


class StartMode(enum.StrEnum):
    """What begins the data, once the cast gathers."""

    JOINED = "joined"
    """``wait_for`` machines have joined, or ``max_wait_s`` is over."""
    MANUAL = "manual"
    """The operator says so."""


class Command(enum.StrEnum):
    """What an operator asks of a cast; kept in the database until the daemon that runs the cast has obeyed."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"


@dataclasses.dataclass(frozen=True, slots=True)
class CastPlan:
    """What somebody asked for.

    Attributes:
        image_id: what is cast.
        room_id: whose machines are imaged; None: whoever joins.
        machine_ids: only these of the room (or of all rooms); empty: all of it.
        name: for people.
        start: what begins the data.
        start_at: it stays planned until then.
        wait_for: machines that must have joined; None: all of the room or of ``machine_ids`` (1 if there are neither).
        max_wait_s: with ``start=joined``: begin with whoever is there after this time; None: wait for ever.
        rate_bytes_per_s: a fixed rate; None: automatic.
        rate_max_bytes_per_s: ceiling of the automatic rate.
        share: leave other traffic its share.
        slow: ``wait``, ``demote`` or ``drop``, as ``diskcast send --slow``.
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

    def asks_for(self, machine: Machine) -> bool:
        """Whether it was planned for this machine."""
        if self.machine_ids:
            return machine.machine_id in self.machine_ids
        return self.room_id is not None and machine.room_id == self.room_id


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """A cast: its plan, how far it has come, and in the end its account.

    Attributes:
        cast_id: eight hexadecimal digits: the same on the wire, in logs, metrics and file names.
        image_name: kept here, so that history can tell it when the image is gone.
        required_count: machines that must verify every byte for it to be done.
        owner: daemon that runs or ran it; empty while nobody has taken it.
        created_by: name of the token, ``local``, or ``schedule NAME``.
        run_count: daemons' runs it took; 2 or more after a restart or a take-over.
        seconds: from the first image data to the end, those of earlier runs included.
        progress: of the machine that has least, stragglers aside, 0..1.
        reason: why it ended, for people.
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


@dataclasses.dataclass(frozen=True, slots=True)
class CastMachine:
    """What a cast did to one machine: the line that history keeps.

    Attributes:
        machine_id: None for one that the database doesn't know.
        state: ``assigned``, ``absent``, or as the cast's sender reports: ``joined``, ``receiving``, ``complete``,
            ``failed``, ``lost``, ``dropped``.
        bottleneck: what limited it last.
        error: why it isn't complete; empty if it is.
        exit_code: the agent's, if it said one.
        bytes_verified: raw bytes read back from its disk and found right.
        bytes_kept: those of them that its disk held already.
        seconds: from its join to its end.
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


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryLine:
    """A :class:`CastMachine` with what the cast was: one line of the record that auditors ask for."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class TimelinePoint:
    """A second of a cast, for charts.

    Attributes:
        at_s: seconds since it began to gather.
        rate_bytes_per_s: what left the sender.
        goodput_bytes_per_s: bytes written by its machines, on average.
        loss: of the main group's machines, the mean, 0..1.
        parity: proactive repair symbols per source symbol.
        progress: as :attr:`Cast.progress`.
        bottleneck: what set the rate, for people.
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
    """What is asked of a cast that another daemon runs.

    Attributes:
        actor: who asks, as in audit.
        reason: why, in the operator's words; empty for none.
    """

    cast_id: str
    command: Command
    actor: str
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CastEvent:
    """Something that happened in a cast, for its timeline.

    Attributes:
        kind: as in the JSON lines of ``diskcast send``: ``receiver_joined``, ``casting_started`` …, and ``paused``,
            ``resumed``, ``taken_over``, ``cancelled``.
        machine: its name, or empty.
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
        time_zone: IANA name, in which ``cron`` is read.
        plan: its ``start_at`` isn't used.
        next_at: None while it isn't enabled.
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
