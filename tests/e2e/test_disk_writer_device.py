"""Writing real block devices and filesystems: past the page cache, coherent with it, with queue settings restored."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import StorageError
from protocol.image.manifest import BlockKind
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.queue_settings import tuned_queue
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.disk.writer import DiskWriter, WriteMode
from receiver.target.open_target import open_target
from tests.support.disks.devices import loop_device, mounted
from tests.support.disks.disk_images import BLOCK_BYTES, allocated_bytes, make_image
from tests.support.disks.disk_writing import random_pieces, write_pieces, write_runs
from tests.support.network.lab import run

pytestmark = pytest.mark.needs_root

MADE = make_image("drzzrzzduu" * 8 + "zur", tail_bytes=1234)
DISK_BYTES = len(MADE.raw) // 4096 * 4096 + MIB


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """Create a disk that is larger than the image and full of other data."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * DISK_BYTES)
    return path


def _write_image(target: Target, writer: DiskWriter) -> None:
    manifest = MADE.manifest
    target.prepare(0)
    writer.zero_blocks(np.flatnonzero(manifest.kind == BlockKind.ZERO))
    write_runs(writer, MADE)
    target.sync()
    assert Verifier(target.read_back, manifest).verify_blocks(np.arange(manifest.block_count)).size == 0


@pytest.mark.parametrize("options", [(), ("--direct-io=on",), ("--sector-size", "4096")])
def test_a_device_is_written_past_the_page_cache(backing: Path, options: tuple[str, ...]) -> None:
    with loop_device(backing, *options) as device, open_target(device, raw_bytes=len(MADE.raw)) as target:
        with DiskWriter(target, MADE.manifest) as writer:
            _write_image(target, writer)
            assert writer.write_mode is WriteMode.DIRECT
            with pytest.raises(OSError, match="busy"):
                os.open(device, os.O_RDWR | os.O_EXCL)
        content = backing.read_bytes()
    unused = np.flatnonzero(MADE.manifest.kind == BlockKind.UNUSED)
    for block in range(MADE.manifest.block_count):
        start, stop = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, len(MADE.raw))
        assert content[start:stop] == (b"\xa5" * (stop - start) if block in unused else MADE.raw[start:stop])
    assert set(content[len(MADE.raw) :]) == {0xA5}


@pytest.mark.parametrize("sector_bytes", [512, 4096, 16384])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_bytes_at_any_place_of_a_device(tmp_path: Path, sector_bytes: int, seed: int) -> None:
    """Direct writes, cached writes and the device's own zeroing lie beside and over each other."""
    rng = random.Random(seed)
    size = 3 * MIB
    path = tmp_path / "disk"
    content = bytearray(rng.randbytes(size))
    path.write_bytes(content)
    memory = aligned_memory(size)
    with (
        loop_device(path, "--sector-size", str(sector_bytes)) as device,
        open_target(device, raw_bytes=size) as target,
        DiskWriter(target, MADE.manifest) as writer,
        device.open("rb", buffering=0) as other,
    ):
        for _ in range(6):
            write_pieces(writer, content, random_pieces(rng, size, 40), rng)
            # Like udev's probes: pages that they leave in the cache must not survive the next write.
            assert os.pread(other.fileno(), size, 0) == content
            target.sync()
            assert target.read_back.read_into(memory, 0) == size
            assert memory == content
        assert writer.write_mode is WriteMode.DIRECT
    assert path.read_bytes() == content


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs", "tmpfs", "ramfs"])
def test_a_file_is_written_on_any_filesystem(tmp_path: Path, filesystem: str) -> None:
    """Written directly or not, the file is right and stays sparse."""
    point, disk = tmp_path / "mounted", tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if filesystem in ("tmpfs", "ramfs"):
            stack.enter_context(mounted("none", point, "-t", filesystem))
        else:
            with disk.open("wb") as file:
                file.truncate(400 * MIB)
            run(f"mkfs.{filesystem}", "-q", disk, timeout_s=120)
            stack.enter_context(mounted(stack.enter_context(loop_device(disk)), point))
        path = point / "target.raw"
        with (
            open_target(path, raw_bytes=len(MADE.raw)) as target,
            DiskWriter(target, MADE.manifest) as writer,
        ):
            _write_image(target, writer)
            if filesystem == "ramfs":
                assert writer.write_mode is WriteMode.PAGE_CACHE
            elif filesystem in ("ext4", "xfs"):
                assert writer.write_mode is WriteMode.DIRECT
        assert path.read_bytes() == MADE.raw
        if filesystem != "ramfs":
            stored_bytes = int(np.count_nonzero(MADE.manifest.stored_mask)) * BLOCK_BYTES
            assert allocated_bytes(path) <= stored_bytes + BLOCK_BYTES


def test_unused_blocks_are_discarded_on_the_device(backing: Path) -> None:
    """A thin disk or an SSD gets back the unused blocks and nothing else."""
    with (
        loop_device(backing) as device,
        open_target(device, raw_bytes=len(MADE.raw)) as target,
        DiskWriter(target, MADE.manifest) as writer,
    ):
        _write_image(target, writer)
        before = allocated_bytes(backing)
        unused = np.flatnonzero(MADE.manifest.kind == BlockKind.UNUSED)
        writer.discard_blocks(unused)
        target.sync()
        assert allocated_bytes(backing) <= before - unused.size * BLOCK_BYTES
        assert Verifier(target.read_back, MADE.manifest).verify_blocks(np.arange(len(MADE.stored))).size == 0
    assert backing.read_bytes()[len(MADE.raw) :] == b"\xa5" * (DISK_BYTES - len(MADE.raw))


def test_a_disk_that_is_full_behind_the_device_is_a_failed_write(tmp_path: Path) -> None:
    """The pool of a thin disk is exhausted: a direct write fails at once, and nothing counts as written after it."""
    made = make_image("r" * 128)
    with mounted("none", tmp_path / "thin", "-t", "tmpfs", "-o", "size=2m") as point:
        backing = point / "disk"
        with backing.open("wb") as file:
            file.truncate(len(made.raw))
        with (
            loop_device(backing) as device,
            open_target(device, raw_bytes=len(made.raw)) as target,
            DiskWriter(target, made.manifest) as writer,
        ):
            with pytest.raises(StorageError, match=r"writing .* failed: .* incomplete"):
                write_runs(writer, made)
            with pytest.raises(StorageError, match="incomplete"):
                target.sync()


# -- the device's settings ------------------------------------------------------------------------------------


def _scheduler(device: Path) -> Path:
    return Path("/sys/block", device.name, "queue", "scheduler")


def _chosen(device: Path) -> str:
    return _scheduler(device).read_text().partition("[")[2].partition("]")[0]


@contextlib.contextmanager
def _tunable_device(backing: Path) -> Iterator[tuple[Path, str, str]]:
    """Provide a loop device with an unsuitable scheduler, and the names of both."""
    with loop_device(backing) as device:
        names = _scheduler(device).read_text().replace("[", "").replace("]", "").split()
        rotational = (_scheduler(device).parent / "rotational").read_text().strip()
        suits = {"0": "none", "1": "mq-deadline"}[rotational]
        others = [name for name in names if name != suits]
        if suits not in names or not others:
            pytest.skip(f"this kernel has only {names}")
        before = _chosen(device)
        _scheduler(device).write_text(others[0])
        try:
            yield device, others[0], suits
        finally:
            _scheduler(device).write_text(before)


def test_a_device_s_scheduler_is_set_and_set_back(backing: Path) -> None:
    with (
        _tunable_device(backing) as (device, before, suits),
        open_target(device, raw_bytes=len(MADE.raw)) as target,
    ):
        with tuned_queue(target, page_cache=True) as tuning:
            assert _chosen(device) == suits
            assert tuning.failures == []
        assert _chosen(device) == before
        assert Path("/sys/block", device.name, "bdi", "max_ratio").read_text() == "100\n"


def test_a_partition_s_settings_are_its_disk_s(tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(16 * MIB)
    with _tunable_device(backing) as (device, before, suits):
        # The kernel may have no parsers of partition tables, but accepts explicit partitions.
        run("addpart", device, "1", "2048", "8192")
        try:
            partition = Path(f"{device}p1")
            made_node = not partition.exists()
            if made_node:
                number = Path("/sys/class/block", partition.name, "dev").read_text().strip()
                major, _, minor = number.partition(":")
                run("mknod", partition, "b", major, minor)
            try:
                with open_target(partition, raw_bytes=MIB) as target, tuned_queue(target):
                    assert _chosen(device) == suits
                assert _chosen(device) == before
            finally:
                if made_node:
                    partition.unlink()
        finally:
            run("delpart", device, "1")


_WRITES_UNTIL_STOPPED = """
import signal, sys
from pathlib import Path
from receiver.disk.queue_settings import tuned_queue
from receiver.target.open_target import open_target

def stop(*_):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, stop)
with open_target(Path(sys.argv[1]), raw_bytes=4096) as target, tuned_queue(target):
    print("writing", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, -signal.SIGINT)])
def test_a_stopped_program_leaves_the_settings_as_they_were(
    backing: Path, number: signal.Signals, code: int
) -> None:
    with _tunable_device(backing) as (device, before, suits):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITES_UNTIL_STOPPED, device], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            assert program.stdout.readline() == "writing\n"
            assert _chosen(device) == suits
            program.send_signal(number)
            assert program.wait(30) == code
        assert _chosen(device) == before
