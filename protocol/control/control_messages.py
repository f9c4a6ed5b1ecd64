"""The control API's JSON: one table of fields per message, from which both directions are derived.

The sender's API and the receiver's client convert records to JSON and back only here. Functions named ``*_untrusted``
take input from the network and raise only :class:`protocol.errors.ProtocolError`; their results have every field in
its range.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    ERROR_TEXT_BYTES_MAX,
    GRTT_MAX_S,
    HARDWARE_ADDRESSES_MAX,
    HASH_BYTES,
    IMAGE_BYTES_MAX,
    MANIFEST_HASH_BYTES,
    MANIFEST_HASHES_MAX,
    NAME_BYTES_MAX,
    NEED_BODY_BYTES_MAX,
    RECEIVER_COUNT_MAX,
    RECEIVER_KEY_BYTES,
    REPORT_INTERVAL_MAX_S,
    RUN_SECRET_BYTES,
    SOURCE_SYMBOLS_MAX,
    SYMBOL_BYTES_MAX,
    SYMBOL_BYTES_MIN,
    WIRE_VERSION,
)
from protocol.errors import JoinRefusedError, ProtocolError, WireVersionError
from protocol.model.cast_state import CastState
from protocol.model.session_records import (
    CastId,
    CastParameters,
    CompletionReport,
    JoinGrant,
    JoinRequest,
    MachineIdentity,
    ReceiverId,
)
from protocol.schema.json_fields import (
    Address,
    Boolean,
    ChoiceField,
    HardwareAddresses,
    HexBytes,
    HexData,
    HexInteger,
    Integer,
    InventoryField,
    JsonField,
    JsonRecord,
    Number,
    Optional,
    PrintableLines,
    PrintableText,
    decode_fields_untrusted,
    encode_fields,
)
from protocol.trust.image_policy import OfferedImage
from protocol.trust.minisign import PUBLIC_KEY_CHARACTERS, SIGNATURE_TEXT_BYTES_MAX
from protocol.trust.statement import STATEMENT_BYTES_MAX, SignedStatement
from protocol.wire.codec import other_version_text

API_BASE = "/api/v1"
JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"
MANIFEST_TYPE = "application/octet-stream"

JsonObject = dict[str, object]


# -- the tables ----------------------------------------------------------------------------------------------

_COUNT = Integer(0, 2**53 - 1)
_PORT = Integer(1, 65535)
_WIRE_VERSION = "wire_version"

CAST_FIELDS: dict[str, JsonField] = {
    "cast_id": HexInteger(),
    "incarnation": Integer(0, 2**32 - 1),
    "state": ChoiceField({state.label: state for state in CastState}),
    "image_id": HexBytes(HASH_BYTES),
    "image_name": PrintableText(NAME_BYTES_MAX),
    "raw_bytes": Integer(1, IMAGE_BYTES_MAX),
    "block_bytes": Integer(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
    "manifest_bytes": Integer(1, 2**40),
    "symbol_bytes": Integer(SYMBOL_BYTES_MIN, SYMBOL_BYTES_MAX),
    "group": Address(multicast=True),
    "port": _PORT,
    "sender_address": Address(multicast=False),
    "feedback_port": _PORT,
    "control_url": PrintableText(256, bytes_min=1),
    "encrypted": Boolean(),
    "receiver_count": Integer(0, RECEIVER_COUNT_MAX),
    "statement": PrintableLines(STATEMENT_BYTES_MAX),
    "signature": PrintableLines(SIGNATURE_TEXT_BYTES_MAX),
    "signer": PrintableText(PUBLIC_KEY_CHARACTERS),
}
"""Fields of ``CastDescription``, which GET returns and a join's answer repeats."""

GRANT_FIELDS: dict[str, JsonField] = {
    "receiver_id": Integer(0, RECEIVER_COUNT_MAX - 1),
    "key": HexBytes(RECEIVER_KEY_BYTES),
    "run_secret": HexBytes(RUN_SECRET_BYTES),
    "control_key": HexBytes(32),
    "next_sequence": _COUNT,
    "next_counter": _COUNT,
    "incarnation": Integer(0, 2**32 - 1),
    "manifest_by_multicast": Boolean(),
    "manifest_hashes": HexData(MANIFEST_HASHES_MAX * MANIFEST_HASH_BYTES),
    "report_interval_s": Number(REPORT_INTERVAL_MAX_S),
    "grtt_s": Number(GRTT_MAX_S),
    "receiver_count": Integer(0, RECEIVER_COUNT_MAX),
    "patch_id": Optional(HexBytes(HASH_BYTES)),
}
"""Fields of the answer to a join, beside its ``cast``."""

IDENTITY: JsonRecord[MachineIdentity] = JsonRecord(
    MachineIdentity,
    {
        "macs": HardwareAddresses(HARDWARE_ADDRESSES_MAX),
        "serial": PrintableText(NAME_BYTES_MAX),
        "asset_tag": PrintableText(NAME_BYTES_MAX),
    },
)
"""A machine's identity."""

JOIN_FIELDS: dict[str, JsonField] = {
    "agent_id": PrintableText(NAME_BYTES_MAX, bytes_min=1),
    "name": PrintableText(NAME_BYTES_MAX, bytes_min=1),
    "inventory": InventoryField(),
    "has_manifest": Boolean(),
    "identity": Optional(IDENTITY),
}
"""Fields of a request to join, beside its ``need``."""

COMPLETION: JsonRecord[CompletionReport] = JsonRecord(
    CompletionReport,
    {
        "success": Boolean(),
        "error": PrintableText(ERROR_TEXT_BYTES_MAX),
        "exit_code": Integer(0, 255),
        "unsigned_allowed": Boolean(),
        "raw_bytes_verified": Integer(0, IMAGE_BYTES_MAX),
        "raw_bytes_kept": Integer(0, IMAGE_BYTES_MAX),
        "blocks_rewritten": _COUNT,
        "bytes_received": _COUNT,
        "bytes_written": _COUNT,
        "datagrams_expected": _COUNT,
        "datagrams_received": _COUNT,
        "socket_drops": _COUNT,
        "blocks_repaired_by_parity": _COUNT,
        "blocks_repaired_by_nack": _COUNT,
        "nacks_sent": _COUNT,
        "seconds_receiving": Number(1e9),
        "seconds_total": Number(1e9),
        "patch_id": Optional(HexBytes(HASH_BYTES)),
    },
)
"""A receiver's completion report."""


# -- JSON text -----------------------------------------------------------------------------------------------


def parse_json_untrusted(body: bytes) -> object:
    """Return the JSON value of a body; the caller has bounded its length.

    Raises:
        ProtocolError: it isn't JSON, or is nested too deeply.
    """
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    return value


def problem_to_json(title: str, detail: str) -> JsonObject:
    """Return an error in the form of RFC 9457."""
    return {"title": title, "detail": detail}


def problem_from_json_untrusted(body: bytes) -> str:
    """Return the ``detail`` or else the ``title`` of an error's body, printable and bounded; empty without either."""
    try:
        value = parse_json_untrusted(body)
    except ProtocolError:
        return ""
    if not isinstance(value, dict):
        return ""
    text = value.get("detail") or value.get("title") or ""
    return str(PrintableText(ERROR_TEXT_BYTES_MAX).encode(text))


# -- need-bitmaps --------------------------------------------------------------------------------------------


def encode_need(need: NDArray[np.bool_] | None) -> str | None:
    """Encode a bitmap as base64 of zlib of its packed bits, most significant first; None, all blocks, stays None.

    Costs about 1 ms per million blocks when most bits agree with their neighbours.
    """
    if need is None:
        return None
    return base64.b64encode(zlib.compress(np.packbits(need).tobytes(), 1)).decode("ascii")


def decode_need_untrusted(value: object, block_count: int) -> NDArray[np.bool_] | None:
    """Decode the bitmap of :func:`encode_need`; it never inflates beyond ``block_count`` bits.

    Returns:
        ``bool[block_count]``, or None for all.

    Raises:
        ProtocolError: it isn't a bitmap of exactly this many blocks.
    """
    if value is None:
        return None
    if type(value) is not str or len(value) > NEED_BODY_BYTES_MAX:
        raise ProtocolError("need: expected null or a base64 text")
    packed_bytes = -(-block_count // 8)
    inflater = zlib.decompressobj()
    try:
        packed = inflater.decompress(base64.b64decode(value, validate=True), packed_bytes + 1)
    except (ValueError, zlib.error) as error:
        raise ProtocolError(f"need: not base64 of a zlib stream: {error}") from error
    if len(packed) != packed_bytes or not inflater.eof or inflater.unused_data:
        raise ProtocolError(f"need: expected a bitmap of {block_count} blocks")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8)).view(np.bool_)
    if bits[block_count:].any():
        raise ProtocolError(f"need: expected a bitmap of {block_count} blocks, this one has more")
    return bits[:block_count]


def need_from_json_untrusted(value: object, block_count: int) -> NDArray[np.bool_] | None:
    """Decode the bitmap of a body ``{"need": …}``.

    Raises:
        ProtocolError: as :func:`decode_need_untrusted`, or ``need`` is missing.
    """
    if not isinstance(value, dict) or "need" not in value:
        raise ProtocolError("need: missing")
    return decode_need_untrusted(value["need"], block_count)


def need_to_json(need: NDArray[np.bool_], heard_sequence: int | None) -> JsonObject:
    """Return the body that reports the missing blocks, and the datagram up to which received symbols are included."""
    return {"need": encode_need(need), "heard_sequence": heard_sequence}


def heard_sequence_from_json_untrusted(value: object) -> int | None:
    """Decode the sequence number of such a body; None for a receiver that has received nothing.

    Raises:
        ProtocolError: it isn't a sequence number.
    """
    sequence = value.get("heard_sequence") if isinstance(value, dict) else None
    if sequence is not None and (type(sequence) is not int or not 0 <= sequence < 1 << 32):
        raise ProtocolError("heard_sequence: expected null or a number of 32 bits")
    return sequence


# -- messages ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class CastDescription:
    """The public description of a cast: everything but its secrets."""

    cast_id: CastId
    incarnation: int
    state: CastState
    image_id: bytes
    image_name: str
    raw_bytes: int
    block_bytes: int
    manifest_bytes: int
    symbol_bytes: int
    group: str
    port: int
    sender_address: str
    feedback_port: int
    control_url: str
    encrypted: bool
    receiver_count: int
    statement: str
    signature: str
    signer: str

    @property
    def offered_image(self) -> OfferedImage:
        """Return the image as the sender describes it, to be accepted or refused."""
        signed = SignedStatement(self.statement.encode(), self.signature) if self.statement else None
        return OfferedImage(self.image_id, self.image_name, signed)


def _wire_version_untrusted(value: object, first_field: str) -> int:
    """Return the wire version of a message's program; version 1 doesn't name it, but has ``first_field``."""
    if not isinstance(value, dict) or not {_WIRE_VERSION, first_field} & value.keys():
        return WIRE_VERSION  # no such message at all, as the fields' errors will say
    version = value.get(_WIRE_VERSION, 1)
    if type(version) is not int or not 0 <= version < 256:
        raise ProtocolError(f"{_WIRE_VERSION}: expected a number of 8 bits")
    return version


def cast_description(parameters: CastParameters, *, state: CastState, receiver_count: int) -> CastDescription:
    """Return the public description of a running cast."""
    fields = {
        name: getattr(parameters, name) for name in CAST_FIELDS if name not in ("state", "receiver_count")
    }
    return CastDescription(**fields, state=state, receiver_count=receiver_count)


def cast_to_json(description: CastDescription) -> JsonObject:
    """Return ``description`` as JSON."""
    fields = encode_fields(CAST_FIELDS, {name: getattr(description, name) for name in CAST_FIELDS})
    return {_WIRE_VERSION: WIRE_VERSION, **fields}


def cast_from_json_untrusted(value: object) -> CastDescription:
    """Decode the description of a cast.

    Raises:
        ProtocolError: a field is missing or out of range, or a block would have more than 224 symbols.
        WireVersionError: the sender's datagrams have another version.
    """
    version = _wire_version_untrusted(value, "cast_id")
    if version != WIRE_VERSION:
        raise WireVersionError(other_version_text("the sender", version))
    description = CastDescription(**decode_fields_untrusted(CAST_FIELDS, value))  # type: ignore[arg-type]
    if description.block_bytes > SOURCE_SYMBOLS_MAX * description.symbol_bytes:
        raise ProtocolError(
            f"block_bytes: more than {SOURCE_SYMBOLS_MAX} symbols of {description.symbol_bytes}"
        )
    return description


def casts_from_json_untrusted(value: object) -> list[CastDescription]:
    """Decode the descriptions of ``{"casts": […]}``.

    Raises:
        ProtocolError: as :func:`cast_from_json_untrusted`.
    """
    casts = value.get("casts") if isinstance(value, dict) else None
    if not isinstance(casts, list):
        raise ProtocolError("casts: expected a list")
    return [cast_from_json_untrusted(item) for item in casts]


def join_to_json(request: JoinRequest) -> JsonObject:
    """Return a request to join as JSON, without its address, which the sender takes from the connection."""
    fields = {name: getattr(request, name) for name in JOIN_FIELDS}
    return {
        _WIRE_VERSION: WIRE_VERSION,
        **encode_fields(JOIN_FIELDS, fields),
        "need": encode_need(request.need),
    }


def join_from_json_untrusted(value: object, *, block_count: int, address: str) -> JoinRequest:
    """Decode a request to join that arrived from ``address``.

    Raises:
        ProtocolError: a field is missing or out of range.
        JoinRefusedError: the receiver's datagrams have another version.
    """
    version = _wire_version_untrusted(value, "agent_id")
    if version != WIRE_VERSION:
        raise JoinRefusedError(other_version_text("the agent", version, ours="this sender"))
    fields = decode_fields_untrusted(JOIN_FIELDS, value)
    need = need_from_json_untrusted(value, block_count)
    return JoinRequest(**fields, need=need, address=address)  # type: ignore[arg-type]


def grant_to_json(grant: JoinGrant, *, state: CastState) -> JsonObject:
    """Return the answer to a join as JSON: the grant with its secrets, and the cast in ``state``."""
    parameters = grant.parameters
    values = {name: getattr(parameters if name == "incarnation" else grant, name) for name in GRANT_FIELDS}
    description = cast_description(parameters, state=state, receiver_count=grant.receiver_count)
    return {**encode_fields(GRANT_FIELDS, values), "cast": cast_to_json(description)}


def grant_from_json_untrusted(value: object) -> JoinGrant:
    """Decode the grant of :func:`grant_to_json`.

    Raises:
        ProtocolError: a field is missing or out of range, or two of them contradict each other.
    """
    grant = decode_fields_untrusted(GRANT_FIELDS, value)
    assert isinstance(value, dict)
    cast = cast_from_json_untrusted(value.get("cast"))
    if cast.incarnation != grant["incarnation"]:
        raise ProtocolError("incarnation: it differs from the cast's")
    parameters = CastParameters(
        **{field.name: getattr(cast, field.name) for field in dataclasses.fields(CastParameters)}
    )
    own = {name: grant[name] for name in GRANT_FIELDS if name != "incarnation"}
    own["receiver_id"] = ReceiverId(own["receiver_id"])  # type: ignore[arg-type]
    decoded = JoinGrant(parameters=parameters, **own)  # type: ignore[arg-type]
    if len(decoded.manifest_hashes) not in (0, MANIFEST_HASH_BYTES * parameters.manifest_block_count):
        raise ProtocolError("manifest_hashes: they don't fit the manifest")
    return decoded
