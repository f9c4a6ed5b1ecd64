"""Fuzz targets of datagrams: anyone on the network can send them, and members can send authentic ones."""

from __future__ import annotations

import hashlib
import random

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.constants import (
    CONTROL_SIGNATURE_BYTES,
    DATA_HEADER_BYTES,
    FEEDBACK_MAC_BYTES,
    TAG_BYTES,
)
from protocol.errors import WireError
from protocol.wire import batch, codec, control_codec, feedback_codec
from protocol.wire.data_tags import DataTagger
from protocol.wire.messages import CONTROL_MESSAGES, FEEDBACK_MESSAGES
from receiver.reception.network.discovery import _offer_untrusted
from tests.fuzz.samples import sample_message
from tests.fuzz.target import Structure, Target

CAST_ID = 0x1234ABCD
KEY = bytes(range(32))
TAG_KEY = bytes(range(16))
SEED = bytes(range(32, 64))
FRAME_BYTES = DATA_HEADER_BYTES + 8
FRAME_COUNT = 8


def control_seeds(cast_id: int = CAST_ID, tag_key: bytes = KEY, seed: bytes = SEED) -> list[bytes]:
    """Return datagrams of every control message, signed by one run."""
    signer = control_codec.ControlSigner(cast_id=cast_id, tag_key=tag_key, seed=seed)
    return [
        signer.encode(sample_message(cls, random.Random(number)))  # type: ignore[arg-type]
        for cls in CONTROL_MESSAGES
        for number in range(4)
    ]


def repair_control(data: bytes, tag_key: bytes = KEY, seed: bytes = SEED) -> bytes:
    """Tag and sign again, as only the sender could: mutations then reach msgpack."""
    start = codec.PREFIX_BYTES + TAG_BYTES
    body = (
        data[start:-CONTROL_SIGNATURE_BYTES] if len(data) > start + CONTROL_SIGNATURE_BYTES else data[start:]
    )
    prefix = data[: codec.PREFIX_BYTES].ljust(codec.PREFIX_BYTES, b"\0")
    tag = hashlib.blake2s(prefix + body, key=tag_key, digest_size=TAG_BYTES).digest()
    signed = prefix + tag + body
    return signed + Ed25519PrivateKey.from_private_bytes(seed).sign(signed)


def _decode_control(data: bytes) -> object:
    codec.foreign_version_untrusted(data)
    control_codec.control_type_untrusted(data)
    return control_codec.decode_control_untrusted(data)


def _verify_control(data: bytes) -> object:
    public_key = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
    verifier = control_codec.ControlVerifier(
        cast_id=CAST_ID, tag_key=KEY, control_key=public_key, next_counter=1
    )
    return verifier.decode_untrusted(data)


def feedback_seeds(
    cast_id: int = CAST_ID, receiver_id: int = 3, key: bytes = KEY, count: int = 4
) -> list[bytes]:
    """Return datagrams of every feedback message, made with one receiver's key."""
    return [
        feedback_codec.encode_feedback(
            sample_message(cls, random.Random(number)),  # type: ignore[arg-type]
            cast_id=cast_id,
            receiver_id=receiver_id,
            counter=number + 1,
            key=key,
        )
        for cls in FEEDBACK_MESSAGES
        for number in range(count)
    ]


def repair_feedback(data: bytes, key: bytes = KEY) -> bytes:
    """Authenticate again, as a hostile member can."""
    body = data[:-FEEDBACK_MAC_BYTES] if len(data) > FEEDBACK_MAC_BYTES else data
    return body + hashlib.blake2s(body, key=key, digest_size=FEEDBACK_MAC_BYTES).digest()


def _decode_feedback(data: bytes) -> object:
    decoded = feedback_codec.decode_feedback_untrusted(data)
    feedback_codec.check_feedback_mac(data, KEY)
    return decoded


def _frames(data: bytes, frame_bytes: int = FRAME_BYTES) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    count = max(1, len(data) // frame_bytes)
    octets = data[: count * frame_bytes].ljust(count * frame_bytes, b"\0")
    return np.frombuffer(bytearray(octets), np.uint8).reshape(count, frame_bytes)


def tag_frames(data: bytes, tag_key: bytes = TAG_KEY, frame_bytes: int = FRAME_BYTES) -> bytes:
    """Tag every frame again, as a hostile member can."""
    frames = _frames(data, frame_bytes)
    headers = batch.header_view(frames)
    headers["tag"] = DataTagger(tag_key).tags(headers["sequence"].astype(np.int64))
    return frames.tobytes()


def _frame_seeds() -> list[bytes]:
    frames = np.zeros((FRAME_COUNT, FRAME_BYTES), np.uint8)
    batch.fill_constant_headers(frames, cast_id=CAST_ID)
    headers = batch.header_view(frames)
    headers["k"] = 8
    headers["sequence"] = np.arange(FRAME_COUNT)
    return [tag_frames(frames.tobytes())]


def _filter_frames(data: bytes) -> object:
    frames = _frames(data)
    header_filter = batch.HeaderFilter(cast_id=CAST_ID, tag_key=TAG_KEY, next_sequence=0)
    accepted = header_filter.accept_untrusted(frames, {})
    return list(batch.block_runs(batch.header_view(frames[accepted])))


TARGETS = (
    Target(
        "control datagram",
        _decode_control,
        (WireError,),
        control_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES + TAG_BYTES,
        CONTROL_SIGNATURE_BYTES,
        share=20,
    ),
    Target(
        "signed control datagram",
        _verify_control,
        (WireError,),
        control_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES + TAG_BYTES,
        CONTROL_SIGNATURE_BYTES,
        repair=repair_control,
        share=3,
    ),
    Target(
        "announcement before the join",
        lambda data: _offer_untrusted(data, "10.0.0.1"),
        (),
        control_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES + TAG_BYTES,
        CONTROL_SIGNATURE_BYTES,
    ),
    Target(
        "feedback datagram",
        _decode_feedback,
        (WireError,),
        feedback_seeds,
        Structure.MSGPACK_BODY,
        codec.PREFIX_BYTES,
        FEEDBACK_MAC_BYTES,
        repair=repair_feedback,
        share=20,
    ),
    Target("frames of symbols", _filter_frames, (), _frame_seeds, repair=tag_frames, share=3),
)
