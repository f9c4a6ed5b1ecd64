"""The check-in of waiting agents with the daemon, as JSON over HTTP.

The agent repeatedly posts a :class:`CheckIn` to ``/api/v1/check-in``: its identity, its state and the result of its
last cast. The daemon answers with the name and id of the machine and with the cast to join or the capture to make. For
an idle agent the daemon holds the answer until there is one (``wait_s``); otherwise it answers at once. A cast that
another daemon has taken over is assigned again, with the new daemon's addresses.

The first check-in carries a token for enrolment, and its answer the machine's secret, which authenticates the machine
from then on. An agent that waits for an operator's approval gets a code to show instead, and asks again.

Each message is one table of fields, from which both directions are derived, as in
:mod:`protocol.control.control_messages`.
"""

from __future__ import annotations

import dataclasses
import enum

from protocol.constants import (
    CHECK_IN_AFTER_S_MAX,
    CHECK_IN_WAIT_S_MAX,
    HASH_BYTES,
    IDLE_RESTART_S_MAX,
    IMAGE_BYTES_MAX,
    MACHINE_ID_BYTES_MAX,
    NAME_BYTES_MAX,
)
from protocol.control.capture_messages import CAPTURE_ASSIGNMENT, CaptureAssignment
from protocol.control.control_messages import COMPLETION, IDENTITY
from protocol.control.hardware_record import HARDWARE
from protocol.model.hardware import Hardware
from protocol.model.session_records import CastId, CompletionReport
from protocol.schema.json_fields import (
    Address,
    Boolean,
    ChoiceField,
    DecimalText,
    HexBytes,
    HexInteger,
    Integer,
    InventoryField,
    JsonRecord,
    Number,
    Optional,
    PrintableText,
)
from protocol.trust.pin import PIN_CHARACTERS
from protocol.trust.tickets import TICKET_CHARACTERS_MAX

CHECK_IN_PATH = "/check-in"
"""Path below ``API_BASE``."""

MACHINE_ID_KEY = "machine_id"
"""Key of a receiver's inventory for the daemon's id of the machine; the daemon sets it, from the ticket."""

MACHINE_SECRET_BYTES_MAX = 128
"""Longest machine secret: longer than any that a daemon makes."""


class AgentState(enum.StrEnum):
    """State of an agent that checks in."""

    IDLE = "idle"
    RECEIVING = "receiving"
    CAPTURING = "capturing"
    LEAVING = "leaving"
    """It exits: the machine may enrol again at once, for example after a reboot over the network."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastOutcome:
    """Result of a cast on one machine, in the fields of :class:`CompletionReport` that history keeps."""

    cast_id: CastId
    success: bool
    error: str
    exit_code: int
    unsigned_allowed: bool
    raw_bytes_verified: int
    raw_bytes_kept: int
    blocks_rewritten: int
    datagrams_expected: int
    datagrams_received: int
    socket_drops: int
    nacks_sent: int
    seconds_receiving: float
    seconds_total: float
    patch_id: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CheckIn:
    """An agent's message to the daemon.

    Attributes:
        agent_id: random id of one run of the agent, which no other agent knows.
        name: name for people: the host name unless the operator set another.
        version: version of the agent.
        interface: network interface on which it receives.
        macs: hardware addresses of the network cards, lower case with colons, the interface's own first.
        serial: the machine's serial number from its firmware; empty if unreadable.
        asset_tag: the owner's asset tag from the firmware; empty if unreadable.
        cast_id: the cast that it receives.
        last_result: result of its last cast, repeated until an answer confirms that it is recorded.
        wait_s: time that the daemon may hold its answer until there is a cast.
        hardware: the machine's hardware, until a daemon has answered a check-in with it; None afterwards.
    """

    agent_id: str
    name: str
    version: str
    interface: str
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    inventory: dict[str, str]
    state: AgentState
    cast_id: CastId | None
    last_result: CastOutcome | None
    wait_s: float
    hardware: Hardware | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """A cast for a machine to join, with its addresses; repeated when another daemon has taken the cast over.

    Attributes:
        pin: pin of the certificate of the daemon that runs the cast; empty for a control API without TLS.
        ticket: proof of the assignment, for the cast's control API; expires soon; each answer has a fresh one.
        version_min: lowest signed version of the image that the machine may accept.
        patch_id: the machine patch to write with the image; None for the image alone.
    """

    cast_id: CastId
    image_name: str
    image_id: bytes
    raw_bytes: int
    control_url: str
    sender_address: str
    group: str
    port: int
    pin: str = ""
    ticket: str = dataclasses.field(default="", repr=False)
    version_min: int = 0
    patch_id: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CheckInAnswer:
    """The daemon's answer.

    Attributes:
        machine_id: the daemon's id of the machine; the agent's joins carry it in their inventory.
        name: the operator's name of the machine.
        recorded_cast_id: the cast whose ``last_result`` is recorded and need not be repeated.
        assignment: the cast to join; None if there is none for this machine.
        capture: the capture to make; None if there is none for this machine.
        check_in_after_s: pause before the next check-in.
        machine_secret: the secret of the machine that has just enrolled, given only once; otherwise empty.
        approval_code: code for the operator who approves this machine; empty if it doesn't wait for approval.
        idle_restart_s: time with nothing to do after which a machine that a boot service has booted restarts, so that
            the daemon decides again; sent with the secret. None: it waits forever.
        cast_planned: a cast waits for this machine, or starts soon; None if the daemon doesn't know.
    """

    machine_id: str
    name: str
    recorded_cast_id: CastId | None
    assignment: Assignment | None
    check_in_after_s: float
    machine_secret: str = dataclasses.field(default="", repr=False)
    approval_code: str = ""
    capture: CaptureAssignment | None = None
    idle_restart_s: float | None = None
    cast_planned: bool | None = None


_OUTCOME_REPORT_FIELDS = tuple(
    field.name for field in dataclasses.fields(CastOutcome) if field.name != "cast_id"
)

CAST_OUTCOME: JsonRecord[CastOutcome] = JsonRecord(
    CastOutcome,
    {"cast_id": HexInteger(), **{name: COMPLETION.fields[name] for name in _OUTCOME_REPORT_FIELDS}},
)

CHECK_IN: JsonRecord[CheckIn] = JsonRecord(
    CheckIn,
    {
        "agent_id": PrintableText(NAME_BYTES_MAX, bytes_min=1),
        "name": PrintableText(NAME_BYTES_MAX, bytes_min=1),
        "version": PrintableText(NAME_BYTES_MAX),
        "interface": PrintableText(NAME_BYTES_MAX),
        **IDENTITY.fields,
        "inventory": InventoryField(),
        "state": ChoiceField({state.value: state for state in AgentState}),
        "cast_id": Optional(HexInteger()),
        "last_result": Optional(CAST_OUTCOME),
        "wait_s": Number(CHECK_IN_WAIT_S_MAX),
        "hardware": Optional(HARDWARE),
    },
)

ASSIGNMENT: JsonRecord[Assignment] = JsonRecord(
    Assignment,
    {
        "cast_id": HexInteger(),
        "image_name": PrintableText(NAME_BYTES_MAX),
        "image_id": HexBytes(HASH_BYTES),
        "raw_bytes": Integer(1, IMAGE_BYTES_MAX),
        "control_url": PrintableText(256, bytes_min=1),
        "sender_address": Address(multicast=False),
        "group": Address(multicast=True),
        "port": Integer(1, 65535),
        "pin": PrintableText(PIN_CHARACTERS),
        "ticket": PrintableText(TICKET_CHARACTERS_MAX),
        "version_min": DecimalText(),
        "patch_id": Optional(HexBytes(HASH_BYTES)),
    },
)

CHECK_IN_ANSWER: JsonRecord[CheckInAnswer] = JsonRecord(
    CheckInAnswer,
    {
        "machine_id": PrintableText(MACHINE_ID_BYTES_MAX, bytes_min=1),
        "name": PrintableText(NAME_BYTES_MAX),
        "recorded_cast_id": Optional(HexInteger()),
        "assignment": Optional(ASSIGNMENT),
        "check_in_after_s": Number(CHECK_IN_AFTER_S_MAX),
        "machine_secret": PrintableText(MACHINE_SECRET_BYTES_MAX),
        "approval_code": PrintableText(MACHINE_SECRET_BYTES_MAX),
        "capture": Optional(CAPTURE_ASSIGNMENT),
        "idle_restart_s": Optional(Number(IDLE_RESTART_S_MAX)),
        "cast_planned": Optional(Boolean()),
    },
)


def outcome_of(cast_id: CastId, report: CompletionReport) -> CastOutcome:
    """Return the part of a receiver's report that history keeps."""
    return CastOutcome(cast_id, **{name: getattr(report, name) for name in _OUTCOME_REPORT_FIELDS})
