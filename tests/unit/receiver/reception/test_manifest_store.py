"""The store of a received manifest: parts arrive in any order, a large one goes to a file, every read is checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from protocol.errors import StorageError
from protocol.image.stored_manifest import PIECE_BYTES, StoredManifest
from protocol.receiving.manifest_reception import MemoryStore
from receiver.reception import manifest_store as module
from receiver.reception.manifest_store import FileStore, manifest_store
from tests.support.programs.descriptors import descriptors

DATA = os.urandom(3 * PIECE_BYTES + 17)


@pytest.fixture(params=[FileStore, MemoryStore])
def store(request: pytest.FixtureRequest) -> FileStore | MemoryStore:
    made = request.param(len(DATA))
    assert isinstance(made, FileStore | MemoryStore)
    return made


def fill(store: FileStore | MemoryStore) -> None:
    for start in (PIECE_BYTES, 0, 2 * PIECE_BYTES, 0, 3 * PIECE_BYTES):
        store.write(start, memoryview(DATA)[start : start + PIECE_BYTES])


def test_parts_that_come_in_any_order_make_the_manifest(store: FileStore | MemoryStore) -> None:
    assert len(store) == len(DATA)
    fill(store)
    data = store.collected()
    assert len(data) == len(DATA)
    assert bytes(data[:]) == DATA
    assert bytes(data[PIECE_BYTES - 3 : PIECE_BYTES + 3]) == DATA[PIECE_BYTES - 3 : PIECE_BYTES + 3]


def test_only_a_large_manifest_lies_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANIFEST_IN_MEMORY_BYTES_MAX", 1000)
    assert isinstance(manifest_store(1000), MemoryStore)
    assert isinstance(manifest_store(1001), FileStore)


def test_a_digest_is_that_of_the_file() -> None:
    store = FileStore(len(DATA))
    fill(store)
    assert store.collected().digest == blake3(DATA).digest()


def test_the_file_stays_as_long_as_the_manifest_is_used() -> None:
    before = descriptors()
    store = FileStore(len(DATA))
    fill(store)
    data: StoredManifest | None = store.collected()
    del store
    assert data is not None
    assert bytes(data[:]) == DATA
    assert (descriptors() - before).total() == 1
    del data
    assert not descriptors() - before


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed agent leaves no file behind."""
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    store = FileStore(len(DATA))
    assert list(tmp_path.iterdir()) == []
    del store


def test_no_room_is_noticed_before_the_cast() -> None:
    with pytest.raises(StorageError, match=r"cannot store the image's manifest .*TMPDIR"):
        FileStore(1 << 50)


def test_a_disk_that_is_full_after_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: memoryview, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    store = FileStore(len(DATA))
    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left on device; set TMPDIR"):
        fill(store)


def test_a_file_that_lost_bytes_is_an_error_of_this_machine() -> None:
    """The error blames this machine, not the image at the sender."""
    store = FileStore(len(DATA))
    fill(store)
    data = store.collected()
    os.pwrite(store._fd, bytes(PIECE_BYTES), 0)
    with pytest.raises(StorageError, match="this machine's memory"):
        data[:5]
    os.ftruncate(store._fd, PIECE_BYTES)
    with pytest.raises(StorageError, match="this machine's memory"):
        data[2 * PIECE_BYTES : 2 * PIECE_BYTES + 5]


def test_a_file_that_cannot_be_read_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_fd: int, _buffers: list[memoryview], _offset: int) -> int:
        raise OSError(5, "Input/output error")

    store = FileStore(len(DATA))
    fill(store)
    monkeypatch.setattr(module.os, "preadv", fails)
    with pytest.raises(StorageError, match=r"cannot read back .*: Input/output error; set TMPDIR"):
        store.collected()
