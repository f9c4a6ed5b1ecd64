"""An agent's memory for each block of a large image, and the rest for its buffers."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from protocol.constants import ASSEMBLY_BYTES_DEFAULT, GIB, KIB, TIB
from protocol.image.incomplete_marker import Marker, build_marker
from protocol.image.manifest_format import build_manifest_start
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastId, CastParameters, JoinGrant, ReceiverId
from protocol.receiving.receiver_session import ReceiverSession
from protocol.shared.block_masks import iter_set_blocks
from receiver.disk.target import Target
from receiver.shared.memory_budget import (
    ASSEMBLY_BYTES_MIN,
    BASE_BYTES,
    BLOCK_MEMORY_BYTES,
    MEMORY_BYTES_MAX,
    assembly_bytes_for,
)
from receiver.target.image import TargetImage
from receiver.target.open_target import open_target
from receiver.target.scan import TargetScan
from tests.support.wire import GRANT_SECRETS

BLOCK_BYTES = 64 * KIB
COUNTS = 1 << 18, 1 << 20
"""Measure the memory of the blocks by the difference; buffers exist once."""


class Held:
    """Create an agent's image and session in the state of receiving a full disk."""

    def __init__(self, block_count: int, path: Path, *, resumes: bool) -> None:
        raw_bytes = block_count * BLOCK_BYTES
        start, layout = build_manifest_start("full", raw_bytes, BLOCK_BYTES, {})
        self.data = bytearray(layout.manifest_bytes)
        self.data[: len(start)] = start
        np.frombuffer(self.data, "<u4", block_count, layout.stored_bytes_offset)[:] = 1000
        self.parameters = CastParameters(
            cast_id=CastId(1),
            incarnation=1,
            image_id=blake3(self.data).digest(),
            image_name="full",
            raw_bytes=raw_bytes,
            block_bytes=BLOCK_BYTES,
            manifest_bytes=len(self.data),
            symbol_bytes=1440,
            group="239.255.68.67",
            port=7410,
            sender_address="192.0.2.1",
            feedback_port=7411,
            control_url="http://192.0.2.1:7411",
        )
        grant = JoinGrant(
            self.parameters,
            ReceiverId(0),
            bytes(16),
            **GRANT_SECRETS,
            manifest_by_multicast=True,
            report_interval_s=1.0,
            grtt_s=0.01,
            receiver_count=1,
        )
        if resumes:
            path.write_bytes(build_marker(Marker(self.parameters.image_id, "full", raw_bytes)))
        self.image = TargetImage(open_target(path, raw_bytes=raw_bytes))
        self.session = ReceiverSession(grant, assembly_bytes=1, rng=random.Random(1), now=0.0)

    def read(self, offset_bytes: int, into: memoryview) -> None:
        into[:] = memoryview(self.data)[offset_bytes : offset_bytes + len(into)]


def receive(held: Held) -> None:
    image, session = held.image, held.session
    stored = StoredManifest(len(held.data), held.read, "image")
    image.take_manifest(stored, held.parameters)
    assert image.manifest is not None
    session.set_manifest(
        image.manifest, image.need, 0.0, unscanned=image.need if not image.scanning else image.unscanned
    )


def lose_all(held: Held) -> None:
    """The target is empty, and nothing of the first pass arrives."""
    receive(held)
    for missing in iter_set_blocks(held.image.need):
        held.session.blocks_missing(missing)
    assert held.session._image is not None
    held.session._image.flush()
    assert held.session.missing_count == held.parameters.raw_bytes // BLOCK_BYTES
    assert held.session.datagrams_to_send(1.0)


def find_nothing(held: Held) -> None:
    """The target has the image's marker, and the scan finds nothing else."""
    receive(held)
    assert held.image.scanning
    held.image.sample_unscanned(0)
    scan = TargetScan(held.session, held.image, report_need=None, on_change=lambda: None, unreported=None)  # type: ignore[arg-type]
    for missing in iter_set_blocks(held.image.unscanned):
        scan._take(missing[:0], missing)
    assert not held.image.scanning


@pytest.mark.parametrize("course", [lose_all, find_nothing])
def test_a_block_of_a_full_disk_takes_its_documented_memory(
    course: Callable[[Held], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a machine with little memory fails in the middle of a cast, whatever the size of its disk."""
    monkeypatch.setattr(Target, "_require_space", lambda _target, _data_bytes: None)
    peaks_bytes = []
    for block_count in COUNTS:
        held = Held(block_count, tmp_path / f"{block_count}.raw", resumes=course is find_nothing)
        tracemalloc.start()
        course(held)
        peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        held.image._target.close()
    block_memory_bytes = (peaks_bytes[1] - peaks_bytes[0]) / (COUNTS[1] - COUNTS[0])
    assert block_memory_bytes < BLOCK_MEMORY_BYTES, peaks_bytes


def need_bytes(block_count: int) -> int:
    assembly_bytes = assembly_bytes_for(ASSEMBLY_BYTES_DEFAULT, block_count)
    return BASE_BYTES + assembly_bytes + BLOCK_MEMORY_BYTES * block_count


def test_large_images_leave_less_for_buffers() -> None:
    default = ASSEMBLY_BYTES_DEFAULT
    assert assembly_bytes_for(default, TIB // (256 * KIB)) == default
    assert ASSEMBLY_BYTES_MIN < assembly_bytes_for(default, 2 * TIB // (256 * KIB)) < default
    assert need_bytes(2 * TIB // (256 * KIB)) == MEMORY_BYTES_MAX
    assert need_bytes(9 * TIB // (1024 * KIB)) <= MEMORY_BYTES_MAX
    assert assembly_bytes_for(default, 16 * TIB // (256 * KIB)) == ASSEMBLY_BYTES_MIN


def test_nacks_search_no_further_than_needed() -> None:
    large = 2 * TIB // (256 * KIB)
    assert assembly_bytes_for(GIB, large) == GIB - (
        need_bytes(0) + BLOCK_MEMORY_BYTES * large - MEMORY_BYTES_MAX
    )
    assert assembly_bytes_for(1000, large) == 1000
