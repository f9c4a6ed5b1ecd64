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

DATA_TAG_KEY_BYTES: Final = 16
"""AES-128."""

CONTROL_TAG_KEY_BYTES: Final = 32
"""BLAKE2s."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupKeys:
    """The keys that all members of one run share.

    Attributes:
        secret: the run's secret, from which further keys may derive.
        data_tag: AES key of the tags of data datagrams.
        control_tag: BLAKE2s key of the tags of control datagrams.
    """

    secret: bytes = dataclasses.field(repr=False)
    data_tag: bytes = dataclasses.field(repr=False)
    control_tag: bytes = dataclasses.field(repr=False)


def derive_group_keys(secret: bytes, *, cast_id: int, incarnation: int) -> GroupKeys:
    """Return the group's keys of one run of a cast."""
    return GroupKeys(
        secret,
        derive_key(secret, "data tags", DATA_TAG_KEY_BYTES, cast_id=cast_id, incarnation=incarnation),
        derive_key(secret, "control tags", CONTROL_TAG_KEY_BYTES, cast_id=cast_id, incarnation=incarnation),
    )


def derive_key(secret: bytes, purpose: str, key_bytes: int, *, cast_id: int, incarnation: int) -> bytes:
    """Return the key of one purpose.

    Args:
        secret: the run's secret.
        purpose: name of the use; different names give independent keys.
        key_bytes: length of the key.
        cast_id: the cast.
        incarnation: the run.
    """
    info = f"diskcast {purpose}".encode() + cast_id.to_bytes(4) + incarnation.to_bytes(4)
    return HKDF(SHA256(), key_bytes, salt=None, info=info).derive(secret)


def control_key_of(seed: bytes) -> bytes:
    """Return the public half of the key with which a run signs its control messages.

    Args:
        seed: 32 random bytes, the private half (RFC 8032 section 5.1.5).
    """
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
