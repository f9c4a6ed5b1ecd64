"""Loading blocks for the network: encrypted ones are always the same ciphertext of the manifest's bytes.

Lost if these fail: symbols of a resent block that don't fit the others, or two plaintexts under one key and nonce.
"""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ImageDamagedError
from protocol.sending.sender_run import SenderRun
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.group_keys import GroupKeys
from sender.cast.transmission.block_loader import CACHE_BYTES, BlockLoader
from tests.shell.sender_rig import SYMBOL_BYTES, Rig, make_rig

KINDS = "drzudr"


def loader_of(rig: Rig, cache_bytes: int = CACHE_BYTES) -> BlockLoader:
    loader = BlockLoader(rig.image, rig.parameters, cache_bytes=cache_bytes)
    loader.use_keys(rig.session.keys)
    return loader


def opened(
    rig: Rig, object_index: int, block: int, symbols: np.ndarray, length: int, keys: GroupKeys | None = None
) -> bytes:
    """Decrypt a loaded block, which must be ``length`` bytes and a tag, padded with zeros."""
    cipher = BlockCipher.of(rig.parameters, keys or rig.session.keys)
    assert cipher is not None
    sealed, padding = np.split(symbols.reshape(-1).copy(), [length + 16])
    assert symbols.shape == (-(-(length + 16) // SYMBOL_BYTES), SYMBOL_BYTES)
    assert not padding.any()
    stored = np.empty(length, np.uint8)
    assert cipher.open_into_untrusted(object_index, block, sealed, stored)
    return stored.tobytes()


def test_encrypted_blocks_open_to_the_stored_bytes(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, KINDS, encrypted=True)
    loader = loader_of(rig)
    manifest = rig.image.manifest
    symbol_counts = manifest.source_symbols(SYMBOL_BYTES, rig.parameters.tag_bytes)
    with rig.image:
        for block in np.flatnonzero(manifest.stored_mask).tolist():
            length = int(manifest.stored_bytes[block])
            into = bytearray(manifest.block_bytes)
            rig.image.read_stored(block, memoryview(into))
            symbols = loader.load(1, block)
            assert symbols.shape[0] == symbol_counts[block]
            assert opened(rig, 1, block, symbols, length) == bytes(into[:length])
        assert symbol_counts[~manifest.stored_mask].tolist() == [0, 0]


def test_the_manifest_is_encrypted_too(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, KINDS, encrypted=True)
    manifest = rig.image.manifest
    symbols = loader_of(rig).load(0, 0)
    assert opened(rig, 0, 0, symbols, len(manifest.data)) == bytes(manifest.data)
    assert manifest.stored_hash[0].tobytes() not in symbols.tobytes()


def test_a_block_that_left_the_cache_is_encrypted_to_the_same_bytes(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, KINDS, encrypted=True)
    loader = loader_of(rig, cache_bytes=0)
    with rig.image:
        first = loader.load(1, 0).tobytes()
        loader.load(1, 1)
        loader.load(1, 4)
        read_s = loader.read_s
        assert loader.load(1, 0).tobytes() == first
        assert loader.read_s > read_s, "it was read again"


def test_other_bytes_are_never_encrypted(tmp_path: Path) -> None:
    """A file altered during the cast would give a second plaintext under the same key and nonce."""
    rig = make_rig(tmp_path, KINDS, encrypted=True)
    path = tmp_path / "image.dci"
    content = bytearray(path.read_bytes())
    start = rig.image.header.payload_offset
    content[start] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    with rig.image, pytest.raises(ImageDamagedError):
        loader_of(rig).load(1, 0)


def test_a_new_run_encrypts_with_its_own_key(tmp_path: Path) -> None:
    """A revoked machine has the old key; blocks in the cache must not be sent with it any more."""
    rig = make_rig(tmp_path, KINDS, encrypted=True)
    loader = loader_of(rig)
    length = int(rig.image.manifest.stored_bytes[0])
    with rig.image:
        before = loader.load(1, 0).tobytes()
        parameters = dataclasses.replace(rig.parameters, incarnation=rig.parameters.incarnation ^ 1)
        keys = SenderRun(parameters, secrets.token_bytes).keys
        loader.use_keys(keys)
        after = loader.load(1, 0).copy()
        assert after.tobytes() != before
        opened(rig, 1, 0, after, length, keys)
