"""Fuzz targets of filesystems that are generalised."""

from __future__ import annotations

import struct

from protocol.disk.disk_reads import Read
from protocol.disk.partition_table import Partition
from protocol.errors import ImageError, SourceUncleanError
from sender.imaging.contents.ext_files import ExtError, ExtFiles
from sender.imaging.generalise.file_search import FileSearch
from sender.imaging.generalise.hidden_ranges import journal_body_untrusted, swap_file_body_untrusted
from sender.imaging.generalise.linux_changes import plan_files_untrusted
from sender.imaging.generalise.mount_table import parse_fstab_untrusted
from sender.imaging.generalise.systems import find_systems_untrusted
from sender.imaging.generalise.windows_state import parse_state_untrusted
from tests.fuzz.target import Target
from tests.support.disks.ext_image import BLOCK_BYTES, make_ext_image

OS_RELEASE = b'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
FSTAB = b'UUID=0815-4711 / ext4 defaults 0 1\n"LABEL=var" /var\\040data ext4 rw # note\n/swap.img none swap sw 0 0\n'
STATE = b"[State]\r\nImageState=IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE\r\n"


def _reader(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length] if offset >= 0 else b""


def _plan(data: bytes) -> None:
    read = _reader(data)
    plan = plan_files_untrusted(ExtFiles.open_untrusted(read), "/etc/ssh", 1)
    assert all(change.path.isprintable() for change in plan.changes)
    search = FileSearch(ExtFiles.open_untrusted(read), "/")
    for found in search.matches_untrusted("/**"):
        assert len(search.start_of_untrusted(found, 1000)) <= 1000
    for found in search.matches_untrusted("/etc"):
        assert found in list(search.tree_untrusted(found))


def _systems(data: bytes) -> None:
    part = Partition(1, 0, len(data), "0x83", "", "ext4")
    systems = find_systems_untrusted([part], {1: _reader(data)})
    assert all(name.isprintable() for name in systems.names.values())
    assert all(remark.isprintable() for remark in systems.remarks)


def _hidden(data: bytes) -> None:
    read = _reader(data)
    files = ExtFiles.open_untrusted(read)
    for ranges in (swap_file_body_untrusted(files, "/etc/os-release"), journal_body_untrusted(files, read)):
        assert all(0 <= start < stop for start, stop in ranges)


def _state(data: bytes) -> None:
    assert parse_state_untrusted(data).problem.isprintable()


def _ext_seeds() -> list[bytes]:
    seeds = []
    for extents in (True, False):
        image = bytearray(make_ext_image(OS_RELEASE, extents=extents))
        struct.pack_into("<I", image, 1024 + 0x5C, 4)  # has a journal, of one block
        struct.pack_into("<I", image, 1024 + 0xE0, 8)
        inode = 3 * BLOCK_BYTES + 7 * 128
        struct.pack_into("<HHI", image, inode, 0o100600, 0, 2 * BLOCK_BYTES)
        struct.pack_into("<II", image, inode + 0x28, 11, 12)
        struct.pack_into(">I", image, 11 * BLOCK_BYTES, 0xC03B3998)
        seeds += [bytes(image), make_ext_image(b"\0" * 900, extents=extents)]
    return seeds


TARGETS = (
    Target("files of one machine", _plan, (ExtError,), _ext_seeds, share=5),
    Target("systems of a disk", _systems, (ExtError,), _ext_seeds, share=5),
    Target("journal and swap file", _hidden, (ExtError, ImageError, SourceUncleanError), _ext_seeds, share=5),
    Target("mount table", parse_fstab_untrusted, (), lambda: [FSTAB]),
    Target("state of Sysprep", _state, (), lambda: [STATE, STATE.decode().encode("utf-16")]),
)
