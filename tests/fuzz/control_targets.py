"""Fuzz targets of the control API's JSON: what a sender, a daemon or a receiver sends before anything is proven."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable

from protocol.constants import MANIFEST_HASH_BYTES, WIRE_VERSION
from protocol.control import capture_messages, check_in, image_requests
from protocol.control import control_messages as messages
from protocol.control.boot_parameters import parse_boot_parameters_untrusted
from protocol.errors import ConfigurationError, JoinRefusedError, ProtocolError, WireVersionError
from protocol.image.manifest_format import build_manifest_start
from receiver.hardware.smart import parse_health_untrusted
from sender.daemon.captures.upload_start import UploadStart
from sender.store.records.captures import CapturePlan
from tests.fuzz.samples import json_bytes, sample_object
from tests.fuzz.target import Structure, Target
from tests.support.capture_batches import sample_proof_batch, sample_span_batch
from tests.support.smart_output import ATA, NO_SMART, NVME

BLOCK_COUNT = 100
GEOMETRY = capture_messages.BlockGeometry(BLOCK_COUNT * (1 << 16) - 5, 1 << 16)


PLAN = CapturePlan("pc01", "lab", "auto", GEOMETRY.block_bytes, 3, every_byte=False)


def _manifest_starts() -> list[bytes]:
    metadata: dict[str, object] = {"logical_sector_bytes": 512}
    return [
        build_manifest_start(PLAN.name, raw_bytes, PLAN.block_bytes, metadata)[0]
        for raw_bytes in (1 << 16, GEOMETRY.raw_bytes)
    ]


def _seeds(make: Callable[[random.Random], object]) -> Callable[[], list[bytes]]:
    return lambda: [json_bytes(make(random.Random(seed))) for seed in range(12)]


def _json(decode: Callable[[object], object]) -> Callable[[bytes], object]:
    return lambda data: decode(messages.parse_json_untrusted(data))


def _cast(pick: random.Random) -> dict[str, object]:
    values = sample_object(messages.CAST_FIELDS, pick)
    return values | {
        "wire_version": WIRE_VERSION,
        "block_bytes": 1 << 16,
        "symbol_bytes": 1 << 10,
        "incarnation": 7,
    }


def _grant(pick: random.Random) -> dict[str, object]:
    values = sample_object(messages.GRANT_FIELDS, pick)
    cast = _cast(pick) | {"manifest_bytes": 1 << 17}  # two blocks
    hashes = pick.randbytes(2 * MANIFEST_HASH_BYTES).hex()
    return values | {"incarnation": 7, "cast": cast, "manifest_hashes": pick.choice(("", hashes))}


def _join(pick: random.Random) -> dict[str, object]:
    return sample_object(
        messages.JOIN_FIELDS, pick, wire_version=WIRE_VERSION, need=pick.choice((None, _need(pick)))
    )


def _need(pick: random.Random) -> str:
    bits = pick.randbytes(BLOCK_COUNT // 8) + b"\xf0"
    return base64.b64encode(zlib.compress(bits)).decode()


def _decode_need(value: object) -> object:
    messages.heard_sequence_from_json_untrusted(value)
    return messages.need_from_json_untrusted(value, BLOCK_COUNT)


def _command_lines() -> list[bytes]:
    pin = "abcdefghij234567abcd"
    return [
        f"quiet diskcast.server=https://10.0.0.1:7400 diskcast.pin={pin},{pin} BOOTIF=01-52-54-00-99-00-01".encode(),
        b'diskcast.boot=dcb_0123456789abcdef diskcast.mode=menu diskcast.after="wait" diskcast.vlan=42 diskcast.x=1',
        b"diskcast.min-version=7 diskcast.tag=a,b diskcast.bond=802.3ad diskcast.grow=yes console=ttyS0,115200\n",
    ]


def _span_batches() -> list[bytes]:
    return [_span_batch(random.Random(seed)) for seed in range(12)]


def _span_batch(pick: random.Random) -> bytes:
    batch = sample_span_batch(pick, GEOMETRY)
    return batch.to_bytes()


def _proof_batches() -> list[bytes]:
    return [sample_proof_batch(random.Random(seed), GEOMETRY).to_bytes() for seed in range(12)]


def _target(
    name: str, decode: Callable[[object], object], make: Callable[[random.Random], object], share: int = 10
) -> Target:
    errors = (ProtocolError, WireVersionError, JoinRefusedError)
    return Target(name, _json(decode), errors, _seeds(make), Structure.JSON, share=share)


def _record(name: str, record: object) -> Target:
    return _target(
        name,
        lambda value: record.decode_untrusted(name, value),  # type: ignore[attr-defined]
        lambda pick: sample_object(record.fields, pick),  # type: ignore[attr-defined]
    )


TARGETS = (
    _target("cast description", messages.cast_from_json_untrusted, _cast),
    _target(
        "list of casts",
        messages.casts_from_json_untrusted,
        lambda pick: {"casts": [_cast(pick) for _ in range(pick.randrange(4))]},
    ),
    _target("grant", messages.grant_from_json_untrusted, _grant),
    _target(
        "request to join",
        lambda value: messages.join_from_json_untrusted(value, block_count=BLOCK_COUNT, address="10.0.0.9"),
        _join,
    ),
    _target(
        "missing blocks",
        _decode_need,
        lambda pick: {"need": _need(pick), "heard_sequence": pick.choice((None, 5, 2**32 - 1))},
    ),
    _record("completion", messages.COMPLETION),
    _record("check-in", check_in.CHECK_IN),
    _record("answer to a check-in", check_in.CHECK_IN_ANSWER),
    _record("images that a machine may request", image_requests.LIBRARY_IMAGES),
    _record("request for an image", image_requests.IMAGE_CHOICE),
    _record("state of a request", image_requests.REQUEST_STATUS),
    _record("start of a capture", capture_messages.CAPTURE_START),
    _record("position of a capture", capture_messages.CAPTURE_POSITION),
    _record("wanted blocks of a capture", capture_messages.SPAN_ANSWER),
    _record("end of a capture", capture_messages.CAPTURE_END),
    _record("result of a capture", capture_messages.CAPTURE_RESULT),
    _record("failure of a capture", capture_messages.CAPTURE_FAILURE),
    Target(
        "start of a captured manifest",
        lambda data: UploadStart.parse_untrusted(data, PLAN),
        (ProtocolError,),
        _manifest_starts,
    ),
    Target(
        "spans of a capture",
        lambda data: capture_messages.SpanBatch.parse_untrusted(data, GEOMETRY),
        (ProtocolError,),
        _span_batches,
    ),
    Target(
        "proof of a capture",
        lambda data: capture_messages.ProofBatch.parse_untrusted(data, GEOMETRY),
        (ProtocolError,),
        _proof_batches,
    ),
    Target(
        "mask of a capture",
        lambda data: capture_messages.SpanAnswer(data).mask_untrusted(BLOCK_COUNT),
        (ProtocolError,),
        lambda: [random.Random(seed).randbytes(BLOCK_COUNT // 8 + 1) for seed in range(4)],
    ),
    Target(
        "kernel command line",
        lambda data: parse_boot_parameters_untrusted(data.decode(errors="replace")),
        (ConfigurationError,),
        _command_lines,
    ),
    Target(
        "health of a disk",
        parse_health_untrusted,
        (ProtocolError,),
        lambda: [json_bytes(document) for document in (NVME, ATA, NO_SMART)],
        Structure.JSON,
    ),
    Target(
        "problem details",
        lambda data: json.dumps(messages.problem_from_json_untrusted(data)).encode(),
        (),
        lambda: [json_bytes(messages.problem_to_json("Conflict", "the roster is full")), b'{"title": 1}'],
        Structure.JSON,
    ),
)
