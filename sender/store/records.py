"""The things that a daemon knows, as plain records.

The same records are what the store keeps, what the API shows (field for field, as JSON) and what the command line
prints. Times are aware ``datetime`` in UTC, ids are text, sizes are bytes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import datetime
from typing import Final

from protocol.constants import SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT


class Role(enum.StrEnum):
    """What the owner of a token may do."""

    VIEW = "view"
    """See everything but tokens' secrets."""
    OPERATE = "operate"
    """See and change everything."""
    ENROL = "enrol"
    """Check a machine in and get its cast, nothing else: the agents' role."""


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


class ImageState(enum.StrEnum):
    """Where an image is."""

    AVAILABLE = "available"
    """On this daemon's disk, checked."""
    REMOTE = "remote"
    """Known, and fetched when a cast needs it."""
    FETCHING = "fetching"
    DAMAGED = "damaged"
    """``problem`` says what is wrong and how to mend it."""
    GONE = "gone"
    """History names it, nobody has it any more."""


class MachineState(enum.StrEnum):
    """A machine's state: in a cast, or between casts."""

    OFFLINE = "offline"
    IDLE = "idle"
    """Its agent waits for a cast."""
    ASSIGNED = "assigned"
    """Told to join a cast; it hasn't joined yet."""
    ABSENT = "absent"
    """Wanted by a cast that has ended; it never joined."""
    JOINED = "joined"
    RECEIVING = "receiving"
    SLOW = "slow"
    """Receiving, and about to be demoted or dropped as a straggler."""
    TAIL = "tail"
    """Receiving as a demoted straggler, after the main group."""
    COMPLETE = "complete"
    """Every byte verified."""
    FAILED = "failed"
    LOST = "lost"
    """Silent for too long; it may come back."""
    DROPPED = "dropped"
    """Dropped from the cast as a straggler."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: object, handler: Callable[[type[str]], object]
    ) -> dict[str, object]:
        """Return pydantic's schema: plain text in the API's document, so that clients accept states added later."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": cls},
            "schema": handler(str),
        }


NOT_JOINED_STATES: Final = frozenset({MachineState.ASSIGNED, MachineState.ABSENT})
CONNECTED_STATES: Final = frozenset({MachineState.JOINED, MachineState.RECEIVING})
UNFINISHED_STATES: Final = CONNECTED_STATES | {MachineState.ASSIGNED}
GIVEN_UP_STATES: Final = frozenset({MachineState.FAILED, MachineState.DROPPED})
"""The cast no longer waits for these machines."""
UNSUCCESSFUL_STATES: Final = GIVEN_UP_STATES | {MachineState.LOST}
"""Counted as failed in :attr:`Cast.failed_count`."""
FINAL_STATES: Final = GIVEN_UP_STATES | {MachineState.COMPLETE}
"""A machine in one of these isn't assigned to the same cast again; a lost one is."""
ACTIVE_STATES: Final = UNFINISHED_STATES | {MachineState.IDLE, MachineState.SLOW, MachineState.TAIL}
"""Shown as working or ready."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image of the library.

    Attributes:
        image_id: digest of its manifest, 64 hexadecimal digits; for a remote one that was never read, ``url:`` and a
            digest of its URL; for a damaged file, ``file:`` and a digest of its path.
        name: as packed.
        location: path or URL, credentials left out.
        source: ``folder``, ``remote`` or ``""`` when it is gone.
        stored_bytes: length of the file.
        packed_at: when the file was last written, the best that is known.
        fetched_bytes: how far a fetch has come.
        in_use_by: casts that use it now.
    """

    image_id: str
    name: str
    location: str
    source: str
    state: ImageState
    raw_bytes: int
    stored_bytes: int
    block_bytes: int
    fetched_bytes: int
    problem: str
    packed_at: datetime | None
    first_seen_at: datetime
    in_use_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """A named set of machines.

    Attributes:
        room_id: lower case letters, digits and hyphens.
        site: daemons cast only for rooms of the sites that they serve; empty: any daemon.
        interface: the sender's network interface for this room; empty: the daemon's own choice.
        machine_count: machines that are in it.
    """

    room_id: str
    name: str
    description: str
    site: str
    interface: str
    created_at: datetime
    machine_count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A machine, whether it is switched on or not.

    Attributes:
        machine_id: chosen by the store.
        macs: hardware addresses, lower case with colons.
        address: where it was last seen.
        inventory: what it said of itself.
        agent_version: of its agent; empty before it was ever seen.
        position: for people, e.g. ``row 2, seat 5``.
    """

    machine_id: str
    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str
    address: str
    agent_version: str
    inventory: dict[str, str]
    created_at: datetime
    last_seen_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ImportProblem:
    """Why a line of an imported file can't be taken; lines count from 1."""

    line: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: all lines of a file, or nothing if there are ``problems``."""

    added: int
    changed: int
    unchanged: int
    problems: tuple[ImportProblem, ...]


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


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token, without its secret, which nobody knows but its owner."""

    token_id: str
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when.

    Attributes:
        actor: name of the token, ``local``, ``schedule NAME`` or ``daemon NAME``.
        action: e.g. ``cast.create``, ``cast.cancel``, ``cast.done``, ``room.import``, ``token.create``.
        subject: what it was done to, e.g. ``cast 1a2b3c4d``.
        detail: what changed.
        request_id: of the API call; the same in the log.
    """

    entry_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, object]
    request_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that an operator should look at, while it lasts.

    Attributes:
        kind: bounded: ``database``, ``library``, ``cast``, ``disk``, ``clock``.
        text: the thing, the cause and the mend.
    """

    kind: str
    text: str
    since: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class LiveMachine:
    """A machine now: a tile of a room's grid, a row of a cast's table.

    Attributes:
        machine_id: None for one that joined a cast without being known.
        state: ``offline``, ``idle`` (its agent waits for a cast), ``assigned``, ``joined``, ``receiving``, ``slow``,
            ``tail``, ``complete``, ``failed``, ``lost`` or ``dropped``; of its last cast while that is shown.
        cast_id: the cast that it is in, or was in last.
        eta_s: until it is complete; None if nobody knows.
    """

    machine_id: str | None
    name: str
    room_id: str | None
    position: str
    address: str
    online: bool
    state: MachineState
    cast_id: str | None
    progress: float
    rate_bytes_per_s: float
    loss: float
    bottleneck: str
    eta_s: float | None
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class LiveCast:
    """A cast now: its record, and what only the daemon that runs it knows.

    Attributes:
        bottleneck: what sets the rate, for people; empty if unknown here.
        eta_s: until the main group is done; None if nobody knows.
        rate_bytes_per_s: what is paced to.
        achieved_bytes_per_s: what leaves.
        local: whether this daemon runs it.
    """

    cast: Cast
    local: bool
    rate_bytes_per_s: float
    achieved_bytes_per_s: float
    elapsed_s: float
    eta_s: float | None
    pass_index: int
    pass_progress: float
    bottleneck: str
