"""Openings of uploads: a capture that ends while its partial file is checked makes room for others."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BlockRows
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind
from protocol.packing.image_start import ImageStart
from protocol.packing.source import Source
from sender.config.sections import LibrarySection
from sender.daemon.captures import upload_opener
from sender.daemon.captures.capture_planning import partial_path
from sender.daemon.captures.upload_opener import UploadOpener
from sender.daemon.captures.upload_start import UploadStart
from sender.imaging.block_check import BlockChecker
from sender.imaging.resumable_image import ResumableImage
from sender.library.library import Library
from sender.store.records.captures import Capture, CapturePlan, CaptureState
from tests.support.network.lab import LIMIT_S

BLOCK_BYTES = 1 << 16
BLOCK = b"\xa5" * BLOCK_BYTES


def interrupted_capture(folder: Path) -> tuple[Capture, UploadStart]:
    """Return a capture whose partial file has one block of its disk."""
    disk = folder / "disk"
    disk.write_bytes(BLOCK * 2)
    plan = CapturePlan("machine", "lab", str(disk), BLOCK_BYTES, 3, every_byte=False)
    with Source(disk) as source:
        data = ImageStart.of(source, plan.name, BLOCK_BYTES, every_byte=False).manifest_start
    start = UploadStart.parse_untrusted(data, plan)
    path = folder / "lab.dci"
    digest = block_hash(BLOCK)
    assert len(digest) == HASH_BYTES
    rows = BlockRows(
        0, np.array([BlockKind.RAW], np.uint8), np.array([BLOCK_BYTES], np.uint32), digest, digest
    )
    with ResumableImage(path, start.manifest_start, start.layout, start.geometry) as image:
        image.append(rows, [BLOCK])
    capture = Capture(
        "3c4d5e6f",
        plan,
        "pc01",
        "lab",
        str(path),
        CaptureState.UPLOADING,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        created_by="ops",
    )
    return capture, start


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("abandons", [False, True])
def test_an_abandoned_check_holds_neither_its_turn_nor_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandons: bool
) -> None:
    """One cancelled capture of a large disk would otherwise keep a whole room waiting for its turn."""
    capture, start = interrupted_capture(tmp_path)
    checking, proceed = threading.Event(), threading.Event()
    check = BlockChecker.good_count

    def slow_check(checker: BlockChecker, *arguments: object) -> int:
        checking.set()
        assert proceed.wait(LIMIT_S)
        return check(checker, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockChecker, "good_count", slow_check)
    monkeypatch.setattr(upload_opener, "_OPENING_WAIT_S", 0.01)

    async def scenario() -> None:
        opener = UploadOpener(Library(LibrarySection(), None))
        partial = partial_path(Path(capture.location))
        try:
            assert await opener.open(capture, start) is None
            assert await asyncio.to_thread(checking.wait, LIMIT_S)
            assert opener.capture_ids == {capture.capture_id}
            waiting = asyncio.ensure_future(opener.open(capture, start))
            await asyncio.sleep(0)
            if abandons:
                opener.abandon(capture.capture_id)
                assert not opener.capture_ids
            proceed.set()
            session = await waiting
            if abandons:
                assert session is None
                async with asyncio.timeout(LIMIT_S):
                    while await asyncio.to_thread(is_locked, partial):
                        await asyncio.sleep(0.01)
                return
            async with asyncio.timeout(LIMIT_S):
                while session is None:
                    session = await opener.open(capture, start)
            assert session.position.next_block == 1
            assert is_locked(partial)
            await session.close()
        finally:
            proceed.set()
            opener.close()

    asyncio.run(scenario())
