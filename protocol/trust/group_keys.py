"""Keys of one run of a sender, which every receiver that joined it has.

They derive from one random secret by HKDF (RFC 5869), each with a purpose of its own, so that none reveals another. A
new run has a new secret: nothing recorded from an earlier run is valid in it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.model.session_records import CastParameters

DATA_TAG_KEY_BYTES: Final = 16
"""AES-128."""

CONTROL_TAG_KEY_BYTES: Final = 32
"""BLAKE2s."""

BLOCK_KEY_BYTES: Final = 32
"""AES-256: an image that is recorded today may hold secrets for decades."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupKeys:
    """The keys that all members of one run share.

    Attributes:
        secret: the run's secret, from which further keys may derive.
        data_tag: AES key of the tags of data datagrams.
        control_tag: BLAKE2s key of the tags of control datagrams.
        blocks: AES key of the blocks of an encrypted cast.
    """

    secret: bytes = dataclasses.field(repr=False)
    data_tag: bytes = dataclasses.field(repr=False)
    control_tag: bytes = dataclasses.field(repr=False)
    blocks: bytes = dataclasses.field(repr=False)


def derive_group_keys(parameters: CastParameters, secret: bytes) -> GroupKeys:
    """Return the group's keys of the run that ``parameters`` describe.

    Image, cast and incarnation are bound into each key: even a secret that was drawn twice wouldn't give one key to two
    runs.
    """

    def derive(purpose: str, key_bytes: int) -> bytes:
        numbers = parameters.cast_id.to_bytes(4) + parameters.incarnation.to_bytes(4)
        info = f"diskcast {purpose}".encode() + parameters.image_id + numbers
        return HKDF(SHA256(), key_bytes, salt=None, info=info).derive(secret)

    return GroupKeys(
        secret,
        data_tag=derive("data tags", DATA_TAG_KEY_BYTES),
        control_tag=derive("control tags", CONTROL_TAG_KEY_BYTES),
        blocks=derive("blocks", BLOCK_KEY_BYTES),
    )


def control_key_of(seed: bytes) -> bytes:
    """Return the public half of the key with which a run signs its control messages.

    Args:
        seed: 32 random bytes, the private half (RFC 8032 section 5.1.5).
    """
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
