"""Tests of images that are altered, truncated or replaced while open: never wrong bytes, never a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import receiver.restore.image_source
import sender.imaging.image_file
from protocol.errors import ImageChangedError, ImageDamagedError
from protocol.image.image_format import PAGE_BYTES
from protocol.image.manifest import Manifest
from receiver.restore.image_source import ImageSource, open_image
from sender.cast.transmission.block_loader import BlockLoader
from sender.imaging.image_file import ImageFile
from tests.shell.sender_rig import make_rig
from tests.support.disks.disk_images import BLOCK_BYTES, make_image

MADE = make_image("drzudrdd")
OLD_NS = 10**18
"""Long ago: anything written now is newer, however coarse the filesystem's clock."""

Opener = Callable[[Path], ImageFile | ImageSource]
OPENERS = pytest.mark.parametrize("opener", [ImageFile.open, open_image], ids=["sender", "receiver"])
STORED = pytest.mark.parametrize("limit_bytes", [None, 0], ids=["in memory", "read as needed"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = MADE.write(tmp_path / "made.dci")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def hold_at_most(limit_bytes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit_bytes is not None:
        for module in (sender.imaging.image_file, receiver.restore.image_source):
            monkeypatch.setattr(module, "MANIFEST_IN_MEMORY_BYTES_MAX", limit_bytes)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        octet = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([octet ^ 1]))


def hashes_of(manifest: Manifest) -> bytes:
    return manifest.stored_hash[:].tobytes() + manifest.raw_hash[:].tobytes()


@OPENERS
@STORED
def test_every_block_is_read(
    path: Path, opener: Opener, limit_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_at_most(limit_bytes, monkeypatch)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with opener(path) as image:
        assert image.manifest.image_id == MADE.manifest.image_id
        assert bytes(image.manifest.data[:]) == bytes(MADE.manifest.data)
        assert hashes_of(image.manifest) == hashes_of(MADE.manifest)
        for block, stored in enumerate(MADE.stored):
            image.read_stored(block, buffer)
            assert buffer[: len(stored)] == stored


@OPENERS
def test_a_manifest_in_memory_outlives_a_truncated_file(path: Path, opener: Opener) -> None:
    """A memory mapping would kill the sender with SIGBUS here, and the room would wait in vain."""
    with opener(path) as image:
        os.truncate(path, 100)
        assert image.manifest.data == MADE.manifest.data
        assert hashes_of(image.manifest) == hashes_of(MADE.manifest)
        with pytest.raises(ImageChangedError, match="truncated"):
            image.read_stored(0, memoryview(bytearray(BLOCK_BYTES)))


@OPENERS
def test_a_manifest_read_on_demand_fails_with_an_error(
    path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_at_most(0, monkeypatch)
    monkeypatch.setattr("protocol.image.stored_manifest._SLOTS", 1)
    with opener(path) as image:
        os.truncate(path, PAGE_BYTES + 10)
        assert isinstance(image.manifest.data, sender.imaging.image_file.StoredManifest)
        image.manifest.data._slots[0] = None
        with pytest.raises(ImageChangedError, match="truncated"):
            image.manifest.raw_hash[3]


@STORED
def test_an_altered_manifest_never_reaches_a_receiver(
    path: Path, limit_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_at_most(limit_bytes, monkeypatch)
    with ImageFile.open(path) as image:
        flip(path, PAGE_BYTES + len(MADE.manifest.data) - 1)
        if limit_bytes is None:
            assert image.manifest.data == MADE.manifest.data
            return
        assert isinstance(image.manifest.data, sender.imaging.image_file.StoredManifest)
        image.manifest.data._slots[0] = None
        with pytest.raises(ImageChangedError, match="manifest was written to"):
            image.manifest.data[:64]


def test_an_open_image_that_is_replaced_keeps_its_content(path: Path) -> None:
    """``pack`` replaces an image in one step: a cast of the old image continues."""
    with ImageFile.open(path) as image:
        other = make_image("rrrrrrrr", seed=9).write(path.with_name("other"))
        other.rename(path)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for block, stored in enumerate(MADE.stored):
            assert buffer[: image.read_stored(block, buffer)] == stored
        assert type(image.wrong_block(0)) is ImageDamagedError


@pytest.mark.parametrize(
    ("before", "kind"), [(True, ImageDamagedError), (False, ImageChangedError)], ids=["before", "since"]
)
@STORED
def test_a_block_altered_since_opening_has_its_own_error(
    tmp_path: Path,
    before: bool,
    kind: type[ImageDamagedError],
    limit_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A damaged image is copied again; for an altered one, the program that writes to it must be stopped."""
    hold_at_most(limit_bytes, monkeypatch)
    rig = make_rig(tmp_path, "rdr")
    rig.image.close()
    path = tmp_path / "image.dci"
    if before:
        flip(path, rig.made.stored_offset(1))
    os.utime(path, ns=(OLD_NS, OLD_NS))
    with ImageFile.open(path) as image:
        if not before:
            flip(path, rig.made.stored_offset(1))
        loader = BlockLoader(image, rig.parameters)
        assert loader.load(1, 0).size
        with pytest.raises(ImageDamagedError, match="block 1 no longer has the bytes") as caught:
            loader.load(1, 1)
        assert type(caught.value) is kind
        assert str(caught.value).count(str(path)) == 1
        assert loader.load(1, 2).size
        assert loader.waiting_s == 0.0
