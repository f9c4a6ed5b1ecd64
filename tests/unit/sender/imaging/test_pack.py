"""Tests of packing: an image reproduces its disk, is always the same, and appears only when it is complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import BLOCK_BYTES_MAX, GIB, IMAGE_NAME_BYTES_MAX, MIB
from protocol.errors import EXIT_INTERRUPTED, ConfigurationError, ImageDamagedError, SourceError, StorageError
from protocol.image.block_codec import BlockDecoder
from protocol.image.manifest import BlockKind
from protocol.packing.image_start import default_name
from protocol.packing.source import Source
from protocol.packing.used_blocks import UnusedBlocks
from sender.imaging.image_file import ImageFile
from sender.imaging.image_verify import verify_image
from sender.imaging.pack import PackOptions, pack_image
from tests.support.disks.disk_images import BLOCK_BYTES, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast, run

OPTIONS = PackOptions(block_bytes=BLOCK_BYTES)
EVERY_BYTE = PackOptions(block_bytes=BLOCK_BYTES, every_byte=True)
LETTERS = "drzzdzrrd" * 20 + "zd"
RAW = make_image(LETTERS, tail_bytes=1234).raw


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a disk with every kind of content and a short last block."""
    path = tmp_path / "disk.raw"
    path.write_bytes(RAW)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return the image's path, in a folder of its own, so that leftover files are visible."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder / "disk.dci"


def raw_of(path: Path) -> bytes:
    """Return the disk that an image describes."""
    buffer = memoryview(bytearray(BLOCK_BYTES_MAX))
    parts: list[bytes] = []
    with ImageFile.open(path) as image:
        assert not verify_image(image, jobs=1).bad_count
        for block in range(image.manifest.block_count):
            length = image.manifest.raw_length(block)
            stored = buffer[: image.read_stored(block, buffer)]
            kind = BlockKind(int(image.manifest.kind[block]))
            parts.append(
                bytes(BlockDecoder().decode_untrusted(kind, stored, length)) if stored else bytes(length)
            )
    return b"".join(parts)


def packed(source: Path, output: Path, options: PackOptions = OPTIONS) -> bytes:
    pack_image(source, output, options)
    return output.read_bytes()


# -- content --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 256 * 1024, BLOCK_BYTES_MAX])
def test_the_image_holds_the_disk(source: Path, output: Path, block_bytes: int) -> None:
    result = pack_image(source, output, PackOptions(block_bytes=block_bytes))
    assert raw_of(output) == RAW
    with ImageFile.open(output) as image:
        assert image.manifest.image_id == result.image_id
        assert image.manifest.name == "disk.raw"
        assert image.manifest.metadata["logical_sector_bytes"] == 512


def test_kinds_follow_the_content(source: Path, output: Path) -> None:
    """Zeros take no space, and receivers don't decompress incompressible blocks."""
    pack_image(source, output, OPTIONS)
    with ImageFile.open(output) as image:
        assert "".join("drzu"[kind] for kind in image.manifest.kind) == LETTERS


@pytest.mark.parametrize("size_bytes", [1, 511, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
@pytest.mark.parametrize("fill", [b"\0", b"x"])
def test_any_size(tmp_path: Path, output: Path, size_bytes: int, fill: bytes) -> None:
    source = tmp_path / "small"
    source.write_bytes(fill * size_bytes)
    pack_image(source, output, OPTIONS)
    assert raw_of(output) == fill * size_bytes


def test_the_same_disk_gives_the_same_file(source: Path, output: Path) -> None:
    """Image ids can be compared between machines, and a repack of an unchanged disk changes nothing."""
    first = packed(source, output)
    for jobs in (1, 2, 3, 64):
        options = PackOptions(block_bytes=BLOCK_BYTES, jobs=jobs)
        assert packed(source, output.with_name(f"{jobs}.dci"), options) == first


def test_holes_and_written_zeros_give_the_same_file(source: Path, tmp_path: Path, output: Path) -> None:
    sparse = tmp_path / "sparse" / source.name
    sparse.parent.mkdir()
    with sparse.open("wb") as file:
        for offset in range(0, len(RAW), 4096):
            page = RAW[offset : offset + 4096]
            if page.strip(b"\0"):
                file.seek(offset)
                file.write(page)
        file.truncate(len(RAW))
    assert sparse.stat().st_blocks < source.stat().st_blocks
    assert packed(sparse, output) == packed(source, output.with_name("other.dci"))


def test_holes_are_not_read(tmp_path: Path, output: Path) -> None:
    """The time to pack a sparse disk of terabytes depends only on its data."""
    path = tmp_path / "thin"
    with path.open("wb") as file:
        file.truncate(64 * GIB)
        file.seek(40 * GIB + 5)
        file.write(b"data")
    before = _bytes_read()
    pack_image(path, output, PackOptions(block_bytes=BLOCK_BYTES_MAX))
    assert _bytes_read() - before < 3 * BLOCK_BYTES_MAX
    with ImageFile.open(output) as image:
        assert np.flatnonzero(image.manifest.stored_mask).tolist() == [40 * GIB // BLOCK_BYTES_MAX]
        assert not verify_image(image).bad_count


def _bytes_read() -> int:
    """Return the bytes that this process has read, from disk or cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_memory_does_not_grow_with_jobs_or_level(tmp_path: Path, output: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(3).bytes(96 * MIB))
    argv = diskcast("pack", path, "-o", output, "--jobs", "64", "--block-size", "4MiB", "--json")
    with Program(argv) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    assert program.usage is not None
    assert program.usage.peak_bytes < 400 * MIB


def test_progress_reaches_the_end(source: Path, output: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack_image(
        source, output, OPTIONS, lambda done_bytes, total_bytes: seen.append((done_bytes, total_bytes))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (len(RAW), len(RAW))


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("sda", "sda"), ("a\nb", "a_b"), ("é" * 40, "é" * 32), ("x" * 200, "x" * IMAGE_NAME_BYTES_MAX)],
)
def test_default_name(file_name: str, name: str) -> None:
    assert default_name(Path("/dev") / file_name) == name


# -- invalid options and outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (PackOptions(block_bytes=3 << 16), "power of two"),
        (PackOptions(level=0), "level 0"),
        (PackOptions(level=23), "level 23"),
        (PackOptions(jobs=0), "can't be 0"),
        (PackOptions(jobs=100_000), "choose 1 to 256"),
        (PackOptions(name="a\tb"), "name"),
        (PackOptions(name="n" * 65), "name"),
    ],
)
def test_options_out_of_range_leave_nothing(
    source: Path, output: Path, options: PackOptions, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        pack_image(source, output, options)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_source_is_never_replaced_by_its_image(
    source: Path, tmp_path: Path, link: Callable[[Path, Path], None] | None
) -> None:
    output = source
    if link is not None:
        output = tmp_path / "other name"
        link(source, output)
    with pytest.raises(ConfigurationError, match="source itself"):
        pack_image(source, output, OPTIONS)
    assert source.read_bytes() == RAW


@pytest.mark.parametrize("folder", ["missing", "disk.raw", "/proc", "/sys"])
def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        pack_image(source, tmp_path / folder / "disk.dci", OPTIONS)


def test_an_output_that_is_no_file(source: Path, output: Path) -> None:
    with pytest.raises(ConfigurationError, match="isn't a file"):
        pack_image(source, output.parent, OPTIONS)


def test_two_packs_of_one_output_do_not_mix(source: Path, output: Path) -> None:
    partial = output.with_name(".disk.dci.partial")
    with partial.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another process"):
            pack_image(source, output, OPTIONS)
        assert partial.exists()


def test_the_file_of_a_killed_pack_is_reused(source: Path, output: Path) -> None:
    expected = packed(source, output.with_name("expected"))
    output.with_name(".disk.dci.partial").write_bytes(b"\xff" * (2 * len(RAW)))
    assert packed(source, output) == expected
    assert sorted(path.name for path in output.parent.iterdir()) == ["disk.dci", "expected"]


def test_a_symbolic_link_keeps_pointing(source: Path, output: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.dci"
    link.symlink_to(output)
    result = pack_image(source, link, OPTIONS)
    assert (result.path, link.is_symlink()) == (output.resolve(), True)
    assert raw_of(link) == RAW


# -- failures during packing ------------------------------------------------------------------------------------------


def shrink(source: Path) -> None:
    os.truncate(source, len(RAW) - 100)


def grow(source: Path) -> None:
    with source.open("ab") as file:
        file.write(b"more")


def rewrite(source: Path) -> None:
    with source.open("r+b") as file:
        file.write(b"other")
    os.utime(source, ns=(0, 0))  # differs from the time before, however coarse the clock


@pytest.mark.parametrize(
    ("change", "reason"), [(shrink, "shorter|size"), (grow, "changed its size"), (rewrite, "written to")]
)
def test_a_source_that_changes_gives_no_image(
    source: Path, output: Path, change: Callable[[Path], None], reason: str
) -> None:
    """An image with parts of two states of a disk is an image of neither."""
    output.write_bytes(b"last week's image")
    changes = iter([change])

    def on_progress(_done_bytes: int, _total_bytes: int) -> None:
        for one in changes:
            one(source)

    with pytest.raises(SourceError, match=reason):
        pack_image(source, output, OPTIONS, on_progress)
    assert output.read_bytes() == b"last week's image"
    assert list(output.parent.iterdir()) == [output]


def test_a_source_that_ends_early_is_named_with_the_offset(source: Path) -> None:
    with Source(source) as opened:
        shrink(source)
        with pytest.raises(SourceError, match=f"before offset {len(RAW) - 100}"):
            opened.read_into(len(RAW) - 1000, memoryview(bytearray(1000)))


def test_an_interrupt_leaves_no_trace(source: Path, output: Path) -> None:
    output.write_bytes(b"last week's image")
    threads = set(threading.enumerate())

    def interrupt(_done_bytes: int, _total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_image(source, output, OPTIONS, interrupt)
    assert output.read_bytes() == b"last week's image"
    assert list(output.parent.iterdir()) == [output]
    assert not set(threading.enumerate()) - threads


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_no_trace(tmp_path: Path, output: Path, number: signal.Signals) -> None:
    source = tmp_path / "slow"
    source.write_bytes(np.random.default_rng(6).integers(1, 9, 48 * MIB, np.uint8).tobytes())
    argv = diskcast("pack", source, "-o", output, "--level", "22", "--jobs", "1", "--json")
    with Program(argv) as program:
        program.wait_event("progress", LIMIT_S)
        assert list(output.parent.iterdir()) == [output.with_name(".disk.dci.partial")]
        program.signal(number)
        assert program.wait(LIMIT_S) == EXIT_INTERRUPTED, program.describe()
    assert list(output.parent.iterdir()) == []


def test_a_failed_write_leaves_no_trace(source: Path, output: Path) -> None:
    """The limit on file sizes needs no root; a full disk fails in the same way."""
    with Program(diskcast("pack", source, "-o", output), prefix=("prlimit", f"--fsize={MIB}")) as program:
        assert program.wait(LIMIT_S) == StorageError.exit_code
        assert os.strerror(errno.EFBIG) in program.stderr_text()
    assert list(output.parent.iterdir()) == []


@pytest.mark.needs_root
def test_a_full_disk_leaves_no_trace(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2m", "diskcast-test", folder)
    try:
        with pytest.raises(StorageError, match=r"No space left.*free some space"):
            pack_image(source, folder / "disk.dci", OPTIONS)
        assert list(folder.iterdir()) == []
        run("mount", "-o", "remount,ro", folder)
        with pytest.raises(ConfigurationError, match="Read-only"):
            pack_image(source, folder / "disk.dci", OPTIONS)
    finally:
        run("umount", folder)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return a disk with 4096-byte sectors, and its backing file."""
    backing = tmp_path / "backing"
    backing.write_bytes(RAW.ljust(len(LETTERS) * BLOCK_BYTES, b"\0"))
    device = run("losetup", "--find", "--show", "--sector-size", "4096", backing).strip()
    try:
        yield Path(device), backing
    finally:
        run("losetup", "--detach", device)


@pytest.mark.needs_root
def test_a_block_device_is_packed_whole(loop_device: tuple[Path, Path], output: Path) -> None:
    device, backing = loop_device
    pack_image(device, output, OPTIONS)
    assert raw_of(output) == backing.read_bytes()
    with ImageFile.open(output) as image:
        assert image.manifest.metadata["logical_sector_bytes"] == 4096
        assert image.manifest.name == device.name


@pytest.mark.needs_root
def test_a_read_error_names_the_offset(loop_device: tuple[Path, Path], output: Path) -> None:
    device, backing = loop_device
    end = 40 * BLOCK_BYTES
    os.truncate(backing, end)  # the loop driver answers reads beyond it with I/O errors
    with pytest.raises(SourceError, match=f"at offset {end}: {os.strerror(errno.EIO)}"):
        pack_image(device, output, EVERY_BYTE)
    with pytest.raises(SourceError, match=f"at offset [0-9]+: {os.strerror(errno.EIO)}"):
        pack_image(device, output, OPTIONS)  # looks at the disk's end first
    assert list(output.parent.iterdir()) == []


# -- free space -----------------------------------------------------------------------------------------------


class _Unread(Source):
    """A disk with bad sectors in free space."""

    bad: tuple[int, int] = (0, 0)

    def read_into(self, offset: int, into: memoryview) -> None:
        assert not (offset < self.bad[1] and offset + len(into) > self.bad[0]), "free space was read"
        super().read_into(offset, into)


def _free(monkeypatch: pytest.MonkeyPatch, *ranges: tuple[int, int]) -> None:
    """Make the source's filesystems report these ranges of blocks as free."""
    found = UnusedBlocks(np.array(ranges, np.int64).reshape(-1, 2), ())
    monkeypatch.setattr("sender.imaging.pack.find_unused_blocks", lambda *_args, **_options: found)


def test_free_blocks_are_neither_read_nor_kept(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = len(LETTERS)
    free = [(1, 4), (5, 6), (70, 90), (last - 1, last)]
    _free(monkeypatch, *free)
    monkeypatch.setattr("sender.imaging.foreign.open_source.Source", _Unread)
    monkeypatch.setattr(_Unread, "bad", (70 * BLOCK_BYTES, 90 * BLOCK_BYTES))
    pack_image(source, output, OPTIONS)
    letters = list(LETTERS)
    for first, stop in free:
        letters[first:stop] = "u" * (stop - first)
    with ImageFile.open(output) as image:
        assert "".join("drzu"[kind] for kind in image.manifest.kind) == "".join(letters)
        assert not verify_image(image).bad_count
        assert not image.manifest.raw_hash[70:90].any()


def test_free_space_in_holes_is_unused_too(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receivers don't write zeros to free space."""
    source = tmp_path / "thin"
    with source.open("wb") as file:
        file.truncate(100 * BLOCK_BYTES)
        file.seek(40 * BLOCK_BYTES)
        file.write(b"x" * 10)
    _free(monkeypatch, (0, 40), (41, 60))
    pack_image(source, output, OPTIONS)
    with ImageFile.open(output) as image:
        assert "".join("drzu"[kind] for kind in image.manifest.kind) == "u" * 40 + "d" + "u" * 19 + "z" * 40


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_disk_without_any_used_block(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    _free(monkeypatch, (0, len(LETTERS)))
    pack_image(source, output, PackOptions(block_bytes=BLOCK_BYTES, jobs=jobs))
    with ImageFile.open(output) as image:
        assert set(image.manifest.kind) == {BlockKind.UNUSED}


# -- every byte -----------------------------------------------------------------------------------------------


def test_every_byte_records_the_hash_that_sha256sum_computes(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _free(monkeypatch, (0, len(LETTERS)))
    with source.open("r+b") as file:
        file.truncate(len(RAW) + 300 * BLOCK_BYTES + 1)  # a hole at the end
    first = packed(source, output, EVERY_BYTE)
    assert packed(source, output, EVERY_BYTE) == first
    with ImageFile.open(output) as image:
        sha256 = hashlib.sha256(source.read_bytes()).digest()
        assert image.manifest.metadata["source_sha256"] == sha256
        assert BlockKind.UNUSED not in image.manifest.kind
        report = verify_image(image)
        report.raise_if_bad(image)
        assert report.source_sha256 == sha256
    with ImageFile.open(output) as image:
        assert not verify_image(image, jobs=1).bad_count


def test_a_disk_of_zeros_has_a_hash_too(tmp_path: Path, output: Path) -> None:
    source = tmp_path / "zeros"
    with source.open("wb") as file:
        file.truncate(3 * MIB + 5)
    pack_image(source, output, EVERY_BYTE)
    with ImageFile.open(output) as image:
        report = verify_image(image)
        report.raise_if_bad(image)
        assert report.source_sha256 == hashlib.sha256(bytes(3 * MIB + 5)).digest()


def test_a_wrong_recorded_hash_is_damage(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.packing.source_hash.SourceHash.digest", lambda _self: b"\1" * 32)
    pack_image(source, output, EVERY_BYTE)
    monkeypatch.undo()
    with ImageFile.open(output) as image:
        report = verify_image(image)
        with pytest.raises(ImageDamagedError, match="SHA-256"):
            report.raise_if_bad(image)
