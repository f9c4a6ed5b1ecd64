"""Power cuts while a target is written: checks of the disks they leave, and of the same command run again.

A run of a real program is recorded on the lab's disk (:mod:`tests.support.disks.slow_disk`);
:class:`Recording` knows every disk that a cut during that run could have left.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.image.incomplete_marker import parse_marker_untrusted
from protocol.image.manifest import BlockKind
from protocol.patch.effective_manifest import effective_manifest
from protocol.patch.machine_patch import MachinePatch
from receiver.restore.disk_progress import TextProgress
from receiver.restore.image_source import open_image
from receiver.restore.restore_image import restore_opened
from tests.support.disks.bootable_disk import looks_bootable, make_bootable_disk
from tests.support.disks.devices import loop_device
from tests.support.disks.slow_disk import Behaviour, loop_over, slow_disk
from tests.support.disks.write_log import PowerCut, PowerCuts, read_log
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.network.loopback_cast import LoopbackCast, assert_memory_kept, pack
from tests.support.patches import make_patch, patched, write_patch

BLOCK_BYTES: Final = 64 * 1024
DEVICE_EVERY: Final = 8
"""Cuts on a device: a run takes three times as long as on a file, and the difference isn't checked here."""
_SECTOR_BYTES: Final = 512


@dataclasses.dataclass(frozen=True, slots=True)
class SmallImage:
    """A bootable disk of 80 blocks, packed."""

    path: Path
    raw: bytes = dataclasses.field(repr=False)
    image_id: bytes
    used: NDArray[np.bool_] = dataclasses.field(repr=False)
    """``bool[byte]``: bytes that the image defines."""
    patch: MachinePatch | None = None
    """Machine patch that ``raw`` includes."""

    @property
    def patch_folder(self) -> Path:
        """Return the folder of the patch's file."""
        return self.path.parent / "patches"

    def is_on(self, disk: bytes) -> bool:
        """Return whether every byte that the image defines is on ``disk``."""
        if len(disk) < len(self.raw):
            return False
        found = np.frombuffer(disk, np.uint8, len(self.raw))
        return bool(np.array_equal(found[self.used], np.frombuffer(self.raw, np.uint8)[self.used]))

    def wrong_blocks(self, disk: bytes) -> list[int]:
        """Return the blocks that differ from the image."""
        size = len(self.raw)
        found = np.frombuffer(disk[:size].ljust(size, b"\xff"), np.uint8)
        wrong = (found != np.frombuffer(self.raw, np.uint8)) & self.used
        return sorted(set((np.flatnonzero(wrong) // BLOCK_BYTES).tolist()))


def make_small_image(folder: Path, seed: int = 1) -> SmallImage:
    """Create the disk and pack it in ``folder``."""
    raw = make_bootable_disk(folder / "disk.raw", seed)
    patched_anywhere = ("--patches", "daemon", "--patch-partitions", "all")
    path = pack(folder / "disk.raw", folder / "disk.dci", "--block-size", "64KiB", *patched_anywhere)
    with open_image(path) as image:
        used = np.repeat(image.manifest.kind != BlockKind.UNUSED, BLOCK_BYTES)[: len(raw)]
        return SmallImage(path, raw, image.manifest.image_id, used)


def with_patch(image: SmallImage, blocks: dict[int, str]) -> SmallImage:
    """Return the image as one machine gets it, with a patch of some blocks in a file."""
    with open_image(image.path) as opened:
        patch = make_patch(opened.manifest, blocks)
        kind = effective_manifest(opened.manifest, patch).kind
    used = np.repeat(kind != BlockKind.UNUSED, BLOCK_BYTES)[: len(image.raw)]
    customised = SmallImage(image.path, patched(image.raw, patch), image.image_id, used, patch)
    customised.patch_folder.mkdir(exist_ok=True)
    write_patch(customised.patch_folder, patch)
    return customised


def with_changed_blocks(disk: bytes, blocks: list[int], seed: int = 5) -> bytes:
    """Return an older version of the disk, with some blocks changed."""
    changed = bytearray(disk)
    rng = np.random.default_rng(seed)
    for block in blocks:
        changed[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = rng.bytes(BLOCK_BYTES)
    return bytes(changed)


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One run on a target that started as ``base``, and all its writes."""

    image: SmallImage
    base: bytes = dataclasses.field(repr=False)
    is_device: bool
    cuts: PowerCuts

    def faults_of(self, disk: bytes) -> list[str]:
        """Return the faults of a disk that is neither untouched nor complete nor marked as incomplete."""
        size = max(len(disk), len(self.base))
        if disk.ljust(size, b"\0") == self.base.ljust(size, b"\0") or self.image.is_on(disk):
            return []
        faults = []
        if looks_bootable(disk):
            faults.append("it looks bootable")
        marker = parse_marker_untrusted(disk[:_SECTOR_BYTES])
        if marker is None or marker.image_id != self.image.image_id:
            faults.append("it carries no mark of this image")
        return faults

    def judge(self, cuts: list[PowerCut], folder: Path) -> list[str]:
        """Return the faults of the disks that these cuts leave, and of the next restore on each."""

        def run_again(target: Path) -> str:
            with open_image(self.image.path) as opened:
                restore_opened(opened, target, _Silence(), patch=self.image.patch)
            return ""

        found = []
        for index, (cut, disk) in enumerate(self.cuts.disks(cuts)):
            on_device = self.is_device and index % DEVICE_EVERY == 0
            faults = [
                *self.faults_of(disk),
                *self._faults_of_next_run(disk, folder, run_again, on_device=on_device),
            ]
            found += [f"{cut}: {fault}" for fault in faults]
        return found

    def judge_by_cast(self, cuts: list[PowerCut], folder: Path) -> list[str]:
        """Return the faults as above, with agents that receive a cast."""

        def run_again(target: Path) -> str:
            with _cast(self.image) as cast:
                agent = cast.receive(target, *_name(self.image))
                return agent.describe() if agent.wait(LIMIT_S) else ""

        return [
            f"{cut}: {fault}"
            for cut, disk in self.cuts.disks(cuts)
            for fault in self._faults_of_next_run(disk, folder, run_again, on_device=self.is_device)
        ]

    def _faults_of_next_run(
        self, disk: bytes, folder: Path, run_again: Callable[[Path], str], *, on_device: bool
    ) -> list[str]:
        path = folder / "left"
        path.write_bytes(disk)
        with loop_device(path) if on_device else contextlib.nullcontext(path) as target:
            failure = run_again(target)
        wrong = self.image.wrong_blocks(path.read_bytes())
        path.unlink()
        faults = [f"the next run failed: {failure}"] if failure else []
        return [*faults, f"the next run left blocks {wrong} wrong"] if wrong else faults


class _Silence(TextProgress):
    """Progress that shows nothing."""

    def result(self, fields: dict[str, object], text: str) -> None:
        pass


def record_restore(folder: Path, image: SmallImage, base: bytes, *, is_device: bool) -> Recording:
    """Record a run of ``diskcast-agent restore``."""
    with _log_disk(folder, base, is_device=is_device) as (target, log_path):
        argv = diskcast_agent("restore", image.path, "--target", target, "--json", *_patch_options(image))
        with Program(argv) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
        assert_memory_kept([program])
    return _recording(image, base, is_device, log_path)


def record_cast(folder: Path, image: SmallImage, base: bytes, *, is_device: bool) -> Recording:
    """Record a run of ``diskcast-agent receive`` with a cast on this machine."""
    with _log_disk(folder, base, is_device=is_device) as (target, log_path):
        with _cast(image) as cast:
            agent = cast.receive(target, *_name(image))
            assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert_memory_kept([agent])
    return _recording(image, base, is_device, log_path)


def _patch_options(image: SmallImage) -> list[str]:
    if image.patch is None:
        return []
    machine = image.patch.machine_id
    return ["--patch", str(image.patch_folder / f"{machine}.dcp"), "--machine", machine]


def _cast(image: SmallImage) -> LoopbackCast:
    return LoopbackCast(image.path, *([] if image.patch is None else ["--patches", str(image.patch_folder)]))


def _name(image: SmallImage) -> list[str]:
    return [] if image.patch is None else ["--name", image.patch.machine_id]


@contextlib.contextmanager
def _log_disk(folder: Path, base: bytes, *, is_device: bool) -> Iterator[tuple[Path, Path]]:
    log_path = folder / "log"
    with slow_disk(folder, Behaviour()) as disk, contextlib.ExitStack() as stack:
        target = disk.directory / "target"
        if base or is_device:
            (disk.storage / "target").write_bytes(base)
        if is_device:
            target = stack.enter_context(loop_over(target))
        disk.set_behaviour(Behaviour(log_path=str(log_path)))
        yield target, log_path
        disk.set_behaviour(Behaviour())


def _recording(image: SmallImage, base: bytes, is_device: bool, log_path: Path) -> Recording:
    cuts = PowerCuts(base, read_log(log_path))
    final = PowerCut(cuts.flush_count, tuple(range(cuts.unflushed_count)))
    [(_, disk)] = cuts.disks([final])
    assert image.is_on(disk), image.wrong_blocks(disk)
    return Recording(image, base, is_device, cuts)
