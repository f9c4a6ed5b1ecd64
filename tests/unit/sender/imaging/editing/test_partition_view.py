"""The view of a partition: tools edit it as a plain file, and only what they access is taken from the image."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ImageDamagedError, StorageError
from protocol.image.manifest import BlockKind
from protocol.program.system_tools import ToolError
from sender.imaging.editing.partition_view import PartitionView
from sender.imaging.image_file import ImageFile
from sender.imaging.pack import PackOptions, pack_image
from sender.imaging.verified_blocks import VerifiedBlocks
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image

KINDS = "drzudduurrzd"
START_BYTES = 2 * BLOCK_BYTES
SIZE_BYTES = 8 * BLOCK_BYTES


@contextmanager
def view_of(
    made: MadeImage, folder: Path, start: int = START_BYTES, size: int = SIZE_BYTES, **options: int
) -> Iterator[PartitionView]:
    with (
        ImageFile.open(made.write(folder / "made.dci")) as image,
        PartitionView(VerifiedBlocks(image), start, size, **options) as view,
    ):
        yield view


def write_with_dd(view: PartitionView, data: bytes, offset: int, block_bytes: int) -> None:
    with tempfile.TemporaryFile(buffering=0) as source:
        source.write(data)
        os.fchmod(source.fileno(), 0o444)
        view.run(
            *("dd", f"if=/proc/self/fd/{source.fileno()}", f"of={view.path}", f"bs={block_bytes}"),
            *("conv=notrunc", f"seek={offset // block_bytes}"),
            reads=(source.fileno(),),
        )


def test_a_tool_reads_the_whole_partition_as_the_image_has_it(tmp_path: Path) -> None:
    made = make_image(KINDS)
    unused = bytearray(made.raw)
    for block, kind in enumerate(made.manifest.kind):
        if kind == BlockKind.UNUSED:
            unused[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    expected = bytes(unused[START_BYTES : START_BYTES + SIZE_BYTES])
    with view_of(made, tmp_path) as view:
        assert view.run("sha256sum", view.path).split()[0].decode() == hashlib.sha256(expected).hexdigest()
        assert view.run("cat", view.path) == expected  # it tries copy_file_range first
        assert view.read(5, SIZE_BYTES) == expected[5:]
        assert view.changed_blocks() == {}


@pytest.mark.parametrize("start", [START_BYTES, START_BYTES + 512])
def test_a_part_of_a_block_is_written_and_the_rest_stays_the_images(tmp_path: Path, start: int) -> None:
    """Also if the partition shares its first and last block with others."""
    made = make_image(KINDS)
    last = SIZE_BYTES - 512
    with view_of(made, tmp_path, start) as view:
        for offset in (0, 3 * BLOCK_BYTES + 512, last):
            write_with_dd(view, b"A" * 512, offset, 512)
        changed = view.changed_blocks()
        loaded = view.loaded_block_count
    blocks = {(start + offset) // BLOCK_BYTES for offset in (0, 3 * BLOCK_BYTES + 512, last)}
    assert set(changed) == blocks
    assert loaded == len(blocks)
    for block, content in changed.items():
        expected = bytearray(made.raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        for offset in (0, 3 * BLOCK_BYTES + 512, last):
            at = start + offset - block * BLOCK_BYTES
            if 0 <= at < BLOCK_BYTES:
                expected[at : at + 512] = b"A" * 512
        assert content == expected


def test_a_block_written_with_its_own_bytes_is_no_change(tmp_path: Path) -> None:
    made = make_image(KINDS)
    with view_of(made, tmp_path) as view:
        write_with_dd(view, made.raw[START_BYTES + 2 * BLOCK_BYTES :][:512], 2 * BLOCK_BYTES, 512)
        write_with_dd(view, bytes(512), BLOCK_BYTES, 512)  # an unused block
        assert view.loaded_block_count == 2
        assert view.changed_blocks() == {}


def test_a_damaged_block_is_the_images_error_and_not_the_tools(tmp_path: Path) -> None:
    made = make_image(KINDS, raw_hashes={4: bytes(range(32))})
    with view_of(made, tmp_path) as view, pytest.raises(ImageDamagedError, match="block 4"):
        view.run("sha256sum", view.path)


def test_a_tool_that_reads_too_much_is_stopped(tmp_path: Path) -> None:
    with (
        view_of(make_image(KINDS), tmp_path, loaded_bytes_max=2 * BLOCK_BYTES) as view,
        pytest.raises(StorageError, match=r"reads more than 128\.0 KiB of the image"),
    ):
        view.run("sha256sum", view.path)


@pytest.mark.parametrize("call", ["fallocate", "truncate"])
def test_holes_and_sizes_are_out_of_a_tools_reach(tmp_path: Path, call: str) -> None:
    """A hole that a tool punches would get the image's content when it is read."""
    arguments = {
        "fallocate": ("fallocate", "--punch-hole", "--length", "4096"),
        "truncate": ("truncate", "--size=0"),
    }
    made = make_image(KINDS)
    with view_of(made, tmp_path) as view:
        with pytest.raises(ToolError, match=r"unsupported|not supported"):
            view.run(*arguments[call], view.path)
        assert (
            view.read(0, SIZE_BYTES)[-BLOCK_BYTES:]
            == made.raw[START_BYTES + SIZE_BYTES - BLOCK_BYTES :][:BLOCK_BYTES]
        )


def test_a_missing_tool_ends_the_watch(tmp_path: Path) -> None:
    with view_of(make_image(KINDS), tmp_path) as view, pytest.raises(ToolError, match="isn't installed"):
        view.run("no-such-tool", view.path)


def test_an_edit_of_a_large_filesystem_reads_some_of_its_metadata(tmp_path: Path) -> None:
    """The judge is e2fsck, which reads all metadata through the view."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").write_text("of the golden machine\n")
    (root / "data").write_bytes(os.urandom(8 * MIB))
    filesystem = tmp_path / "filesystem"
    with filesystem.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, filesystem], check=True)
    path = tmp_path / "golden.dci"
    pack_image(filesystem, path, PackOptions())
    before = path.read_bytes()
    with (
        ImageFile.open(path) as image,
        PartitionView(VerifiedBlocks(image), 0, image.manifest.raw_bytes) as view,
    ):
        view.run("debugfs", "-w", "-R", "rm /etc/machine-id", view.path)
        assert view.loaded_block_count <= 8
        assert 1 <= len(view.changed_blocks()) <= 4
        assert b"machine-id" not in view.run("debugfs", "-R", "ls -p /etc", view.path)
        view.run("e2fsck", "-fn", view.path)
    assert path.read_bytes() == before
