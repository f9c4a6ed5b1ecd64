"""Tests of partition tables from sfdisk's text: sfdisk itself reads back what it had written as text."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.disk.partition_table import TableKind
from protocol.errors import ForeignImageError
from sender.imaging.foreign.disk_assembly import SwapArea, build_swap_header
from sender.imaging.foreign.partition_dump import parse_dump_untrusted
from sender.imaging.foreign.partition_tables import DiskTable, TableFiles, build_table
from tests.support.network.lab import run

NAME = "sda-pt.sf"
DISK_BYTES = 64 * MIB
SCRIPTS = {
    "GPT": (
        'label: gpt\n1 : size=4MiB, type=U, name="EFI System"\n2 : size=8MiB, type=L, '
        'attrs="RequiredPartition GUID:60,63", name="a Prüfraum, name=x"\n'
        '5 : start=40960, type=S, attrs="LegacyBIOSBootable"\n'
    ),
    "MBR": "label: dos\nlabel-id: 0x1234abcd\nsize=4MiB, type=c, bootable\nsize=8MiB, type=83\n",
    "MBR with logical partitions": (
        "label: dos\n1 : size=4MiB, type=7\n2 : type=5\n5 : size=4MiB, type=83\n6 : size=8MiB, type=82\n"
        "7 : size=2MiB, type=83\n"
    ),
}


def made_disk(path: Path, script: str) -> tuple[bytes, str]:
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("sfdisk", "--quiet", "--no-reread", path, text=script)
    return path.read_bytes(), run("sfdisk", "--dump", path)


def written(table: DiskTable) -> bytes:
    disk = bytearray(table.disk_bytes)
    for offset, data in table.writes:
        disk[offset : offset + len(data)] = data
    return bytes(disk)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_table_from_text_alone_is_the_same_to_sfdisk(tmp_path: Path, script: str) -> None:
    _, text = made_disk(tmp_path / "disk", script)
    table = build_table(parse_dump_untrusted(text.encode(), NAME), TableFiles(disk_bytes=DISK_BYTES), NAME)
    (tmp_path / "disk").write_bytes(written(table))
    assert run("sfdisk", "--dump", tmp_path / "disk") == text
    run("sfdisk", "--verify", tmp_path / "disk")


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_table_with_raw_sectors_is_exact(tmp_path: Path, script: str) -> None:
    raw, text = made_disk(tmp_path / "disk", script)
    dump = parse_dump_untrusted(text.encode(), NAME)
    files = TableFiles(raw[: 34 * 512], disk_bytes=None if "gpt" in script else DISK_BYTES)
    if dump.extended:
        files = TableFiles(raw[:512], raw[512:MIB], DISK_BYTES)
    assert written(build_table(dump, files, NAME)) == raw


def test_raw_sectors_of_another_table_give_way_to_the_text(tmp_path: Path) -> None:
    """FOG saves the GPT of a resizable image while its partitions are shrunk."""
    shrunken, _ = made_disk(tmp_path / "disk", "label: gpt\nsize=1MiB\nsize=1MiB\n")
    _, text = made_disk(tmp_path / "disk", SCRIPTS["GPT"])
    table = build_table(parse_dump_untrusted(text.encode(), NAME), TableFiles(shrunken[: 34 * 512]), NAME)
    assert table.disk_bytes == DISK_BYTES
    (tmp_path / "disk").write_bytes(written(table))
    assert run("sfdisk", "--dump", tmp_path / "disk") == text


def test_text_of_old_versions_is_read() -> None:
    text = (
        "# partition table of /dev/sda\nunit: sectors\n\n"
        "/dev/sda1 : start=     2048, size=   204800, Id=83, bootable\n"
        "/dev/sda2 : start=   206848, size=   100000, Id= 7\n"
        "/dev/sda3 : start=        0, size=        0, Id= 0\n"
    )
    dump = parse_dump_untrusted(text.encode(), NAME)
    assert dump.table is TableKind.MBR
    assert [(part.number, part.type, part.is_bootable) for part in dump.partitions] == [
        (1, "83", True),
        (2, "07", False),
    ]


GPT = f"label: gpt\nlabel-id: {uuid.UUID(int=7)}\n"
LINUX = "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"


def test_numbers_of_every_device_name() -> None:
    for device in ("/dev/nvme0n1p", "/dev/mmcblk0p", "/dev/sda", "/dev/cciss/c0d0p", "/dev/mapper/isw_b"):
        dump = parse_dump_untrusted(f"{GPT}{device}12 : start=80, size=8, {LINUX}\n".encode(), NAME)
        assert [part.number for part in dump.partitions] == [12]


REFUSED = {
    "nothing": "",
    "binary": "\0\1\2",
    "overlap": "/dev/sda1 : start=8, size=8, type=83\n/dev/sda2 : start=15, size=8, type=83\n",
    "twice": "/dev/sda1 : start=8, size=8, type=83\n/dev/sda1 : start=30, size=8, type=83\n",
    "number 0": "/dev/sda0 : start=8, size=8, type=83\n",
    "number 200": f"{GPT}/dev/sda200 : start=80, size=8, {LINUX}\n",
    "negative": "/dev/sda1 : start=-8, size=8, type=83\n",
    "at the table": "/dev/sda1 : start=0, size=8, type=83\n",
    "beyond any disk": f"{GPT}/dev/sda1 : start=99999999999999999, size=8, {LINUX}\n",
    "beyond 2 TiB of an MBR": "/dev/sda1 : start=4294967290, size=80, type=83\n",
    "logical outside": "/dev/sda1 : start=8, size=90, type=5\n/dev/sda5 : start=200, size=8, type=83\n",
    "extended over primary": "/dev/sda1 : start=8, size=90, type=83\n/dev/sda2 : start=50, size=90, type=5\n",
    "no type": "/dev/sda1 : start=8, size=8, type=zz\n",
    "type of another table": f"/dev/sda1 : start=8, size=8, {LINUX}\n",
    "no UUID": f"{GPT}/dev/sda1 : start=80, size=8, {LINUX}, uuid=x-y\n",
    "sectors of 100 bytes": "sector-size: 100\n/dev/sda1 : start=8, size=8, type=83\n",
    "BSD": "label: bsd\n/dev/sda1 : start=8, size=8, type=83\n",
    "no entries": f"{GPT}table-length: 0\n/dev/sda1 : start=80, size=8, {LINUX}\n",
    "attribute 99": f'{GPT}/dev/sda1 : start=80, size=8, {LINUX}, attrs="GUID:99"\n',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_a_table_that_contradicts_itself_is_refused(text: str) -> None:
    with pytest.raises(ForeignImageError, match=re.escape(NAME)):
        parse_dump_untrusted(text.encode(), NAME)


def test_a_partition_within_the_gpt_or_beyond_the_disk_is_refused() -> None:
    inside = parse_dump_untrusted(f"{GPT}/dev/sda1 : start=20, size=8, {LINUX}\n".encode(), NAME)
    with pytest.raises(ForeignImageError, match="overlap the GPT"):
        build_table(inside, TableFiles(disk_bytes=DISK_BYTES), NAME)
    beyond = parse_dump_untrusted(b"/dev/sda1 : start=2048, size=131072, type=83\n", NAME)
    with pytest.raises(ForeignImageError, match="beyond the disk's end"):
        build_table(beyond, TableFiles(disk_bytes=DISK_BYTES), NAME)


@pytest.mark.parametrize("label", ["", "resting", "fifteen-letters"])
def test_a_swap_header_is_that_of_mkswap(tmp_path: Path, label: str) -> None:
    identity = "6f0d9a86-4c41-4f0f-9d3c-6f2a0c8a5e11"
    (tmp_path / "swap").write_bytes(bytes(MIB))
    run("mkswap", "--uuid", identity, *(("--label", label) if label else ()), tmp_path / "swap")
    assert build_swap_header(SwapArea(1, identity, label), MIB) == (tmp_path / "swap").read_bytes()[:4096]


def test_a_swap_area_with_an_invalid_name_is_refused() -> None:
    for swap, size_bytes in ((SwapArea(1, "x"), MIB), (SwapArea(1, "", "a" * 17), MIB), (SwapArea(1), 8192)):
        with pytest.raises(ValueError, match=r"."):
            build_swap_header(swap, size_bytes)
