"""The cipher of blocks: the same ciphertext at every call, and no altered or moved block opens.

Lost if these fail: symbols of two passes wouldn't decode together, or a listener could read an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.model.session_records import CastId
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.group_keys import derive_group_keys
from tests.simulation.world import Scenario, World

KEY = bytes(range(32))
STORED = np.random.default_rng(1).integers(0, 256, 5000, np.uint8)


def sealed(block: int = 7, object_index: int = 1) -> np.ndarray:
    ciphertext = np.empty(STORED.size + 16, np.uint8)
    BlockCipher(KEY).seal_into(object_index, block, STORED.data, ciphertext)
    return ciphertext


def opens(ciphertext: np.ndarray, block: int = 7, object_index: int = 1) -> bool:
    stored = np.empty(max(0, ciphertext.size - 16), np.uint8)
    right = BlockCipher(KEY).open_into_untrusted(object_index, block, ciphertext, stored)
    return right and stored.tobytes() == STORED.tobytes()


def test_a_block_sent_again_is_the_same_ciphertext() -> None:
    assert sealed().tobytes() == sealed().tobytes()
    assert opens(sealed())


def test_the_nonce_is_object_and_block() -> None:
    block = 2**28 - 1
    nonce = (1).to_bytes(4) + block.to_bytes(8)
    assert sealed(block).tobytes() == AESGCM(KEY).encrypt(nonce, STORED.tobytes(), None)


@pytest.mark.parametrize("position", [0, 2500, 4999, 5000, 5015])
def test_an_altered_block_does_not_open(position: int) -> None:
    ciphertext = sealed()
    ciphertext[position] ^= 1
    assert not opens(ciphertext)


def test_a_block_opens_only_in_its_place() -> None:
    assert not opens(sealed(block=7), block=8)
    assert not opens(sealed(object_index=0))


@pytest.mark.parametrize("length", [0, 15, 16, 4000])
def test_a_truncated_block_does_not_open(length: int) -> None:
    assert not opens(sealed()[:length].copy())


PARAMETERS = World(Scenario(1)).parameters
SECRET = bytes(range(32))
KEYS = derive_group_keys(PARAMETERS, SECRET)


def test_only_an_encrypted_cast_has_a_cipher() -> None:
    assert BlockCipher.of(PARAMETERS, KEYS) is None
    assert BlockCipher.of(dataclasses.replace(PARAMETERS, encrypted=True), KEYS) is not None


@pytest.mark.parametrize(
    "change",
    [{"image_id": bytes(32)}, {"cast_id": CastId(8)}, {"incarnation": 1}],
    ids=["image", "cast", "incarnation"],
)
def test_every_run_has_keys_of_its_own(change: dict[str, object]) -> None:
    changed = dataclasses.replace(PARAMETERS, **change)  # type: ignore[arg-type]
    others = derive_group_keys(changed, SECRET), derive_group_keys(PARAMETERS, bytes(32))
    assert derive_group_keys(dataclasses.replace(PARAMETERS), SECRET) == KEYS
    for name in ("data_tag", "control_tag", "blocks"):
        for other in others:
            assert getattr(other, name) != getattr(KEYS, name)


def test_the_key_is_derived_as_rfc_5869_says() -> None:
    """By hand: extract without a salt, expand to one block of SHA-256."""
    extracted = hmac.digest(bytes(32), SECRET, hashlib.sha256)
    run = PARAMETERS.cast_id.to_bytes(4) + PARAMETERS.incarnation.to_bytes(4)
    info = b"diskcast blocks" + PARAMETERS.image_id + run
    assert KEYS.blocks == hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def test_secrets_are_not_in_reprs() -> None:
    for secret in (KEYS.secret, KEYS.data_tag, KEYS.control_tag, KEYS.blocks):
        assert repr(secret) not in repr(KEYS)
        assert secret.hex() not in repr(KEYS)
