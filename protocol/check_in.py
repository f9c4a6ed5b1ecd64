"""Checking in: how an agent that waits for a cast and the daemon that has one for it talk, as JSON over HTTP.

The agent posts a :class:`CheckIn` again and again to ``/api/v1/check-in``: who it is, what it does, and how its last
cast went. The daemon answers who that is in its books, and which cast to join. An idle agent lets the daemon hold its
answer until there is a cast (``wait_s``); one that receives doesn't wait. A cast that another daemon has taken over is
assigned again, with the new daemon's addresses.

Both directions come from the tables of fields, as in :mod:`protocol.control_messages`.
"""

from __future__ import annotations

import dataclasses

from protocol.constants import (
    CHECK_IN_AFTER_S_MAX,
    CHECK_IN_WAIT_S_MAX,
    HARDWARE_ADDRESSES_MAX,
    HASH_BYTES,
    IMAGE_BYTES_MAX,
    MACHINE_ID_BYTES_MAX,
    NAME_BYTES_MAX,
)
from protocol.control_messages import COMPLETION_FIELDS, JsonObject
from protocol.json_fields import (
    Address,
    Choice,
    HardwareAddresses,
    HexBytes,
    HexInteger,
    Integer,
    Inventory,
    Kind,
    Number,
    Optional,
    PrintableText,
    decode_fields_untrusted,
    encode_fields,
)
from protocol.session_records import CastId, CompletionReport

CHECK_IN_PATH = "/check-in"
"""Below ``API_BASE``."""

STATE_IDLE = "idle"
STATE_RECEIVING = "receiving"

_OUTCOME_REPORT_FIELDS = (
    "success",
    "error",
    "exit_code",
    "raw_bytes_verified",
    "raw_bytes_kept",
    "blocks_rewritten",
    "datagrams_expected",
    "datagrams_received",
    "socket_drops",
    "nacks_sent",
    "seconds_receiving",
    "seconds_total",
)

CHECK_IN_FIELDS: dict[str, Kind] = {
    "agent_id": PrintableText(NAME_BYTES_MAX, bytes_min=1),
    "name": PrintableText(NAME_BYTES_MAX, bytes_min=1),
    "version": PrintableText(NAME_BYTES_MAX),
    "interface": PrintableText(NAME_BYTES_MAX),
    "macs": HardwareAddresses(HARDWARE_ADDRESSES_MAX),
    "serial": PrintableText(NAME_BYTES_MAX),
    "asset_tag": PrintableText(NAME_BYTES_MAX),
    "inventory": Inventory(),
    "state": Choice((STATE_IDLE, STATE_RECEIVING)),
    "cast_id": Optional(HexInteger()),
    "wait_s": Number(CHECK_IN_WAIT_S_MAX),
}
"""A check-in, beside its ``last_result``."""

OUTCOME_FIELDS: dict[str, Kind] = {
    "cast_id": HexInteger(),
    **{name: COMPLETION_FIELDS[name] for name in _OUTCOME_REPORT_FIELDS},
}
"""How a cast went on one machine: what history keeps of a :class:`CompletionReport`."""

ANSWER_FIELDS: dict[str, Kind] = {
    "machine_id": PrintableText(MACHINE_ID_BYTES_MAX, bytes_min=1),
    "name": PrintableText(NAME_BYTES_MAX),
    "recorded_cast_id": Optional(HexInteger()),
    "check_in_after_s": Number(CHECK_IN_AFTER_S_MAX),
}
"""The answer, beside its ``assignment``."""

ASSIGNMENT_FIELDS: dict[str, Kind] = {
    "cast_id": HexInteger(),
    "image_name": PrintableText(NAME_BYTES_MAX),
    "image_id": HexBytes(HASH_BYTES),
    "raw_bytes": Integer(1, IMAGE_BYTES_MAX),
    "control_url": PrintableText(256, bytes_min=1),
    "sender_address": Address(multicast=False),
    "group": Address(multicast=True),
    "port": Integer(1, 65535),
}
"""A cast that a machine is to join, and where."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastOutcome:
    """How a cast went on one machine, in the fields of :class:`CompletionReport` that history keeps."""

    cast_id: CastId
    success: bool
    error: str
    exit_code: int
    raw_bytes_verified: int
    raw_bytes_kept: int
    blocks_rewritten: int
    datagrams_expected: int
    datagrams_received: int
    socket_drops: int
    nacks_sent: int
    seconds_receiving: float
    seconds_total: float


@dataclasses.dataclass(frozen=True, slots=True)
class CheckIn:
    """What an agent says of itself.

    Attributes:
        agent_id: one run of the agent's program.
        name: for people: the host name unless the operator said otherwise.
        version: of its program.
        interface: network interface on which it receives.
        macs: its network cards' hardware addresses, lower case with colons, the interface's own first.
        serial: the machine's, as its firmware says it; empty if it can't be read.
        asset_tag: the owner's mark in the firmware; empty if it can't be read.
        state: ``STATE_IDLE`` or ``STATE_RECEIVING``.
        cast_id: the cast that it receives.
        last_result: how its last cast went, said until an answer says that it is recorded.
        wait_s: how long the daemon may hold its answer for a cast to come.
    """

    agent_id: str
    name: str
    version: str
    interface: str
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    inventory: dict[str, str]
    state: str
    cast_id: CastId | None
    last_result: CastOutcome | None
    wait_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """A cast that a machine is to join, and where: at first, and again when another daemon has taken it over."""

    cast_id: CastId
    image_name: str
    image_id: bytes
    raw_bytes: int
    control_url: str
    sender_address: str
    group: str
    port: int


@dataclasses.dataclass(frozen=True, slots=True)
class CheckInAnswer:
    """What the daemon says.

    Attributes:
        machine_id: which machine of its books this is; the agent's joins carry it in their inventory.
        name: what the operator calls that machine.
        recorded_cast_id: the cast whose ``last_result`` is on record and needn't be said again.
        assignment: the cast to join; None if there is none for this machine.
        check_in_after_s: pause before the next check-in.
    """

    machine_id: str
    name: str
    recorded_cast_id: CastId | None
    assignment: Assignment | None
    check_in_after_s: float


def outcome_of(cast_id: CastId, report: CompletionReport) -> CastOutcome:
    """The part of a receiver's account of itself that history keeps."""
    return CastOutcome(cast_id, **{name: getattr(report, name) for name in _OUTCOME_REPORT_FIELDS})


def outcome_to_json(outcome: CastOutcome) -> JsonObject:
    """An outcome as JSON."""
    return encode_fields(OUTCOME_FIELDS, _values(outcome))


def outcome_from_json_untrusted(value: object) -> CastOutcome:
    """The outcome of a cast.

    Raises:
        ProtocolError: a field is missing or out of range.
    """
    return CastOutcome(**decode_fields_untrusted(OUTCOME_FIELDS, value))  # type: ignore[arg-type]


def check_in_to_json(check_in: CheckIn) -> JsonObject:
    """A check-in as JSON; texts are cut to their limits."""
    last = check_in.last_result
    return {
        **encode_fields(CHECK_IN_FIELDS, _values(check_in)),
        "last_result": None if last is None else outcome_to_json(last),
    }


def check_in_from_json_untrusted(value: object) -> CheckIn:
    """What an agent says of itself.

    Raises:
        ProtocolError: a field is missing or out of range.
    """
    fields = decode_fields_untrusted(CHECK_IN_FIELDS, value)
    assert isinstance(value, dict)
    last = value.get("last_result")
    outcome = None if last is None else outcome_from_json_untrusted(last)
    return CheckIn(**fields, last_result=outcome)  # type: ignore[arg-type]


def assignment_to_json(assignment: Assignment) -> JsonObject:
    """An assignment as JSON."""
    return encode_fields(ASSIGNMENT_FIELDS, _values(assignment))


def assignment_from_json_untrusted(value: object) -> Assignment:
    """A cast to join.

    Raises:
        ProtocolError: a field is missing or out of range.
    """
    return Assignment(**decode_fields_untrusted(ASSIGNMENT_FIELDS, value))  # type: ignore[arg-type]


def answer_to_json(answer: CheckInAnswer) -> JsonObject:
    """The answer to a check-in as JSON."""
    assignment = answer.assignment
    return {
        **encode_fields(ANSWER_FIELDS, _values(answer)),
        "assignment": None if assignment is None else assignment_to_json(assignment),
    }


def answer_from_json_untrusted(value: object) -> CheckInAnswer:
    """The answer to a check-in.

    Raises:
        ProtocolError: a field is missing or out of range.
    """
    fields = decode_fields_untrusted(ANSWER_FIELDS, value)
    assert isinstance(value, dict)
    item = value.get("assignment")
    assignment = None if item is None else assignment_from_json_untrusted(item)
    return CheckInAnswer(**fields, assignment=assignment)  # type: ignore[arg-type]


def _values(record: CheckIn | CastOutcome | CheckInAnswer | Assignment) -> dict[str, object]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
