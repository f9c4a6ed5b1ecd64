"""Random images on random targets, interrupted anywhere: a disk is unchanged, marked as incomplete, or complete.

All changes of a run to its target are recorded, so that one run yields every disk that a power cut could have left.
The next run continues some of them. If a run is killed without a power cut, its unflushed data is still in a cache, and
the next run must flush it before relying on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB, SOURCE_SYMBOLS_MAX, SYMBOLS_MAX
from protocol.errors import StorageError, TargetError
from protocol.image.incomplete_marker import Marker, build_marker, parse_marker_untrusted
from protocol.image.manifest import BlockKind
from protocol.model.session_records import CastId, CastParameters
from protocol.patch.effective_manifest import effective_manifest
from protocol.patch.machine_patch import MachinePatch
from protocol.receiving.block_assembly import AssembledBlock
from receiver.restore.disk_progress import TextProgress
from receiver.restore.image_source import open_image
from receiver.restore.restore_image import restore_opened
from receiver.target import image as target_image
from receiver.target import patch_blocks
from receiver.target.block_sink import Outcome
from receiver.target.image import TargetImage
from receiver.target.open_target import open_target
from receiver.target.options import TargetOptions
from tests.support.disks.bootable_disk import looks_bootable
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.disks.recorded_disk import RecordedDisk
from tests.support.patches import make_patch, patched

SEEDS = range(32)
CUTS_PER_RUN = 24
RUNS_AGAIN = 2
FAILURES = 3
BLOCK_SIZES = [64 * 1024] * 6 + [256 * 1024, MIB, 4 * MIB]


# -- the image and the previous content of the target ---------------------------------------------------------


def _random_image(rng: random.Random) -> MadeImage:
    block_bytes = rng.choice(BLOCK_SIZES)
    edge_count = -(-MIB // block_bytes)
    block_count = rng.choice([1, 2, rng.randrange(1, 2 * edge_count + 2), 2 * edge_count + rng.randrange(24)])
    block_count = min(block_count, max(2, 8 * MIB // block_bytes))
    letters = rng.choice(["d", "dr", "drz", "drzu", "zu", "drzzzz", "u"])
    kinds = "".join(rng.choice(letters) for _ in range(block_count))
    kinds = rng.choice([kinds[0], "d", "z", "u"]) + kinds[1:]
    tail_bytes = rng.choice([None, rng.randrange(1, 4097), rng.randrange(1, block_bytes), 512, 4096])
    return make_image(kinds, tail_bytes=tail_bytes, seed=rng.randrange(1 << 30), block_bytes=block_bytes)


def _random_patch(rng: random.Random, made: MadeImage) -> MachinePatch | None:
    """Return a patch of some blocks, the first and the last more often than others; none half of the time."""
    count = made.manifest.block_count
    if rng.random() < 0.5:
        return None
    blocks = {
        rng.choice([0, count - 1, rng.randrange(count), rng.randrange(count)])
        for _ in range(rng.randrange(1, 9))
    }
    return make_patch(
        made.manifest, {block: rng.choice("drz") for block in blocks}, seed=rng.randrange(1 << 30)
    )


def _used(made: MadeImage, patch: MachinePatch | None) -> np.ndarray:
    manifest = made.manifest if patch is None else effective_manifest(made.manifest, patch)
    return np.repeat(manifest.kind != BlockKind.UNUSED, manifest.block_bytes)[: manifest.raw_bytes]


def _random_target(rng: random.Random, made: MadeImage, current: bytes) -> bytes:
    """Return a target that is empty, foreign, outdated, current or marked; of the image's size, shorter or longer."""
    manifest = made.manifest
    kind = rng.choice(["empty", "strange", "week", "week", "same", "marked", "other-mark"])
    if kind == "empty":
        return b""
    content = bytearray(current)
    for block in range(manifest.block_count):
        if kind == "strange" or (kind != "same" and rng.random() < 0.3):
            start, length = block * manifest.block_bytes, manifest.raw_length(block)
            content[start : start + length] = rng.randbytes(length)
    if kind == "strange" and rng.random() < 0.3:
        content[manifest.raw_bytes // 2 :] = bytes(manifest.raw_bytes - manifest.raw_bytes // 2)
    resized = rng.randrange(6)
    if resized == 0:
        content = content[: rng.randrange(len(content)) + 1]
    elif resized == 1:
        content += rng.randbytes(rng.choice([1, 512, 5000, 3 * MIB]))
    if len(content) >= 512 and kind in ("strange", "week"):
        content[510:512] = b"\x55\xaa"
    if kind.endswith("mark") or kind == "marked":
        image_id = manifest.image_id if kind == "marked" else bytes(32)
        mark = build_marker(Marker(image_id, "made", manifest.raw_bytes))
        content[: min(512, len(content))] = mark[: len(content)]
    return bytes(content)


# -- runs -----------------------------------------------------------------------------------------------------


def _assembled(made: MadeImage, block: int, stored: bytes) -> AssembledBlock:
    symbol_bytes = max(1440, -(-made.manifest.block_bytes // SOURCE_SYMBOLS_MAX))
    k = -(-len(stored) // symbol_bytes)
    slots = np.frombuffer(bytearray(stored.ljust(k * symbol_bytes, b"\0")), np.uint8).reshape(k, symbol_bytes)
    return AssembledBlock(
        object=1,
        block=block,
        k=k,
        cast_bytes=len(stored),
        slots=slots,
        slot_esi=np.arange(k, dtype=np.uint64).astype(np.uint8),
        seen=np.ones(SYMBOLS_MAX, np.bool_),
        buffer_index=0,
        missing_count=0,
    )


def _parameters(made: MadeImage) -> CastParameters:
    manifest = made.manifest
    return CastParameters(
        cast_id=CastId(7),
        incarnation=1,
        image_id=manifest.image_id,
        image_name="made",
        raw_bytes=manifest.raw_bytes,
        block_bytes=manifest.block_bytes,
        manifest_bytes=len(manifest.data),
        symbol_bytes=1440,
        group="239.255.0.1",
        port=1,
        sender_address="127.0.0.1",
        feedback_port=2,
        control_url="http://127.0.0.1:2",
    )


class _Receiving:
    """Write to a target as a cast does, step by step in random order."""

    def __init__(
        self, made: MadeImage, patch: MachinePatch | None, image: TargetImage, rng: random.Random
    ) -> None:
        self.patch = patch
        self.made = made
        self.image = image
        self.rng = rng
        self.in_flight: set[int] = set()
        self.written: list[int] = []

    def run(self) -> None:
        image, rng = self.image, self.rng
        image.take_manifest(
            self.made.manifest.data, _parameters(self.made), permit=lambda _manifest: self.patch
        )
        while not image.complete:
            if image.commit_due:
                assert not self.in_flight
                image.commit()
                image.mark_committed()
                break
            steps: list[Callable[[], None]] = []
            if image.scanning:
                steps.append(self._scan)
            if self._awaited().size:
                steps.append(lambda: self._arrive(rng.randint(1, 24)))
            if image.zeros_due:
                steps.append(self._zero)
            if image.patch_due:
                steps.append(self._patch)
            if self.written:
                steps.append(self._verify)
            assert steps, "it would wait for ever"
            rng.choice(steps)()
        manifest = self.made.manifest
        if self.patch is not None:
            manifest = effective_manifest(manifest, self.patch)
        assert image.needed_count == 0
        assert not image.need.any()
        assert image.raw_bytes_verified == int(_used(self.made, self.patch).sum())
        assert image.blocks_verified_count == np.count_nonzero(manifest.kind != BlockKind.UNUSED)
        assert image.scanned_share == 1.0

    def _awaited(self) -> np.ndarray:
        image = self.image
        assert image.manifest is not None
        unscanned = image.unscanned & image.manifest.stored_mask
        return np.setdiff1d(np.flatnonzero(image.need | unscanned), sorted(self.in_flight))

    def _scan(self) -> None:
        image = self.image
        blocks = image.next_scan_step(self.rng.choice([0, int(np.flatnonzero(image.unscanned)[-1])]))
        missing = image.scan(blocks)
        if self.rng.random() < 0.5 and self._awaited().size:
            self._arrive(5)
        held = np.setdiff1d(blocks, missing)
        image.mark_held(held[image.unscanned[held]])
        image.mark_missing(missing[image.unscanned[missing]])

    def _arrive(self, count_max: int) -> None:
        image = self.image
        awaited = self._awaited().tolist()
        blocks = self.rng.sample(awaited, min(count_max, len(awaited)))
        coming = []
        for block in blocks:
            image.mark_arrived(block)
            self.in_flight.add(block)
            stored = self.made.stored[block]
            if self.rng.random() < 0.05:
                stored = bytes([stored[0] ^ 1]) + stored[1:]
            coming.append(_assembled(self.made, block, stored))
        for block, outcome in zip(blocks, image.write_blocks(coming), strict=True):
            if outcome is Outcome.WRITTEN:
                self.written.append(block)
                continue
            self.in_flight.remove(block)
            if outcome is Outcome.HELD:
                image.mark_held_back(block)

    def _zero(self) -> None:
        blocks, wrong = self.image.zero_step()
        assert wrong.size == 0
        self.image.mark_zeroed(blocks)

    def _patch(self) -> None:
        held, written, wrong = self.image.patch_step()
        assert wrong.size == 0
        self.image.mark_patched(held, written)

    def _verify(self) -> None:
        blocks = np.array(sorted(self.written), np.int64)
        self.written.clear()
        assert self.image.sync_and_verify(blocks).size == 0
        self.image.mark_verified(blocks)
        self.in_flight.difference_update(blocks.tolist())


class _Silence(TextProgress):
    def start_phase(self, phase: str, total_bytes: int) -> None:
        pass

    def advance(self, done_bytes: int) -> None:
        pass

    def result(self, fields: dict[str, object], text: str) -> None:
        pass


@dataclasses.dataclass
class World:
    """One image, and the ways to write it to a disk."""

    made: MadeImage
    patch: MachinePatch | None
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    rng: random.Random

    def run(self, disk: RecordedDisk) -> None:
        """Complete one run; ``disk.log`` grows."""
        with disk.recorded(self.monkeypatch):
            options = TargetOptions(scans=self.rng.random() < 0.8)
            if self.rng.random() < 0.3:
                image_path = self.folder / "made.dci"
                if not image_path.exists():
                    self.made.write(image_path)
                with open_image(image_path) as opened:
                    restore_opened(opened, disk.path, _Silence(), options, patch=self.patch)
                return
            with (
                open_target(disk.path, raw_bytes=len(self.made.raw)) as target,
                contextlib.closing(TargetImage(target, options, rng=self.rng)) as image,
            ):
                _Receiving(self.made, self.patch, image, self.rng).run()

    @property
    def raw(self) -> bytes:
        """Return the disk that every run must end with, apart from unused blocks."""
        return self.made.raw if self.patch is None else patched(self.made.raw, self.patch)

    def is_on(self, content: bytes) -> bool:
        if len(content) < len(self.made.raw):
            return False
        used = _used(self.made, self.patch)
        found = np.frombuffer(content, np.uint8, len(self.made.raw))
        return bool(np.array_equal(found[used], np.frombuffer(self.raw, np.uint8)[used]))

    def fault_of(self, content: bytes, before: bytes) -> str:
        """Return the fault of a disk after a power cut; empty if there is none."""
        size = max(len(before), len(self.made.raw))
        unchanged = content.ljust(size, b"\0") == before.ljust(size, b"\0")
        if unchanged or self.is_on(content) or len(self.made.raw) < 512:  # too small for the marker
            return ""
        if looks_bootable(content):
            return "it looks bootable"
        marker = parse_marker_untrusted(content[:512])
        if marker is None or marker.image_id not in (self.made.manifest.image_id, bytes(32)):
            return "it has no marker"
        return ""


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    rng = random.Random(request.param)
    made = _random_image(rng)
    block_bytes = made.manifest.block_bytes
    monkeypatch.setattr(target_image, "SCAN_STEP_BYTES", rng.choice([1, 4, 16]) * block_bytes)
    monkeypatch.setattr(target_image, "ZERO_STEP_BYTES", rng.choice([1, 4, 64]) * block_bytes)
    monkeypatch.setattr(patch_blocks, "_STEP_BYTES", rng.choice([1, 4, 64]) * block_bytes)
    return World(made, _random_patch(rng, made), tmp_path, monkeypatch, rng)


def _require_durable(world: World, disk: RecordedDisk) -> None:
    assert world.is_on(disk.path.read_bytes())
    assert disk.path.stat().st_size == len(world.made.raw)
    for _ in range(3):
        left = disk.cut_at(len(disk.log), world.rng)
        assert world.is_on(left), "it was reported complete before it was flushed"


@pytest.mark.parametrize("world", SEEDS, indirect=True)
def test_every_interrupted_run_ends_right(world: World) -> None:
    rng = world.rng
    disk = RecordedDisk(
        world.folder / "target", _random_target(rng, world.made, rng.choice([world.made.raw, world.raw]))
    )
    before = disk.durable
    world.run(disk)
    _require_durable(world, disk)
    cuts = [*sorted(rng.choices(range(len(disk.log) + 1), k=CUTS_PER_RUN)), len(disk.log) - 1]
    lefts = [(cut, disk.cut_at(cut, rng)) for cut in cuts]
    for cut, left in lefts:
        assert not (fault := world.fault_of(left, before)), f"cut before entry {cut}: {fault}"
    for number in range(RUNS_AGAIN):
        cut, left = rng.choice(lefts if rng.random() < 0.7 else lefts[-1:])
        again = RecordedDisk(world.folder / f"again{number}", left)
        if rng.random() < 0.5:
            # The agent was killed without a power cut: unflushed data is still there, but may be lost.
            content = bytearray(before)
            for entry in disk.log[:cut]:
                entry.apply(content)
            again.path.write_bytes(content)
            again.durable, again.log = before, list(disk.log[:cut])
        world.run(again)
        _require_durable(world, again)
        for at in rng.choices(range(len(again.log) + 1), k=8):
            fault = world.fault_of(again.cut_at(at, rng), again.durable)
            assert not fault, f"cut before entry {cut}, then before {at}: {fault}"


@pytest.mark.parametrize("world", SEEDS, indirect=True)
def test_a_failing_disk_is_never_complete(world: World) -> None:
    """Each write and each flush may fail: no failure is silent, and the disk is marked as incomplete."""
    rng = world.rng
    before = _random_target(rng, world.made, rng.choice([world.made.raw, world.raw]))
    count = None
    for number in range(1 + FAILURES):
        disk = RecordedDisk(world.folder / f"target{number}", before)
        if count is not None:
            disk.fails_at = rng.randrange(count + 1)
        try:
            world.run(disk)
        except (StorageError, TargetError):
            left = disk.path.read_bytes() if disk.path.exists() else b""
            fault = "" if world.is_on(left) else world.fault_of(left, before)
            assert not fault, f"entry {len(disk.log)} failed: {fault}"
        else:
            _require_durable(world, disk)
        count = len(disk.log)
