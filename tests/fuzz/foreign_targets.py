"""Fuzz targets of other programs' images, which may come from anywhere."""

from __future__ import annotations

import functools
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from protocol.constants import MIB
from protocol.errors import ForeignImageError, SourceError
from sender.imaging.foreign.clonezilla import describe_clonezilla_untrusted
from sender.imaging.foreign.disk_assembly import DiskDescription
from sender.imaging.foreign.fog import describe_fog_untrusted
from sender.imaging.foreign.image_directory import ImageDirectory
from sender.imaging.foreign.partclone_reader import PartcloneReader
from sender.imaging.foreign.partition_dump import parse_dump_untrusted
from sender.imaging.foreign.partition_tables import TableFiles, build_table
from tests.fuzz.target import Structure, Target
from tests.support.disks.partclone_files import build_partclone, repair_header


def _read_partclone(data: bytes) -> None:
    reader = PartcloneReader(io.BytesIO(data), "sda1.ext4-ptcl-img")
    device_bytes = reader.header.device_bytes
    used_bytes = sum(int((ranges[:, 1] - ranges[:, 0]).sum()) for ranges in reader.used_ranges())
    position = read_bytes = 0
    for offset, run in reader.runs_untrusted():
        assert position <= offset < offset + len(run) <= device_bytes
        assert len(run) <= 4 * MIB
        position = offset + len(run)
        read_bytes += len(run)
    assert read_bytes == used_bytes


def _partclone_seeds() -> list[bytes]:
    pick = random.Random(1)
    blocks = [pick.randbytes(32) if pick.random() < 0.7 else b"" for _ in range(29)]
    full = [pick.randbytes(16) for _ in range(9)]
    return [
        build_partclone(blocks),
        build_partclone(blocks, checksum=False),
        build_partclone(blocks, blocks_per_checksum=1, restarts=False),
        build_partclone(blocks, bitmap_mode=8),
        build_partclone(full, bitmap_mode=0, checksum=False),
        build_partclone(blocks[:9], version=1),
    ]


# -- directories ------------------------------------------------------------------------------------------------

LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
GPT_DUMP = f"""label: gpt
label-id: {LINUX}
first-lba: 34
last-lba: 8158
sector-size: 512

/dev/sda1 : start=2048, size=2048, type={LINUX}, uuid={LINUX}, name="a b", attrs="RequiredPartition GUID:60,63"
/dev/sda2 : start=4096, size=1024, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
"""
MBR_DUMP = """label: dos
label-id: 0x00112233
/dev/sda1 : start=2048, size=2048, type=83, bootable
/dev/sda2 : start=4096, size=40960, type=f
/dev/sda5 : start=6144, size=1024, type=82
/dev/sda6 : start=9216, size=1024, type=83
"""
OLD_DUMP = (
    "# partition table of /dev/sda\nunit: sectors\n\n/dev/sda1 : start=  2048, size=  2048, Id=83, bootable\n"
)
DUMPS = (GPT_DUMP, MBR_DUMP, OLD_DUMP)


def _read_dump(data: bytes) -> None:
    dump = parse_dump_untrusted(data, "sda-pt.sf")
    _check_table(DiskDescription("sda", dump, build_table(dump, TableFiles(), "sda"), (), ()))


def _check_table(disk: DiskDescription) -> None:
    """Check that no write of the table reaches into a partition or beyond the disk."""
    unit = disk.dump.sector_bytes
    for offset, data in disk.table.writes:
        stop = offset + len(data)
        assert 0 <= offset < stop <= disk.table.disk_bytes
        for part in disk.dump.areas:
            assert stop <= part.start_sector * unit or part.stop_sector * unit <= offset, part


class _FilesInMemory(ImageDirectory):
    """A directory whose files are in memory: a hundred times as many executions as with files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(_empty_folder())
        self.names = tuple(sorted(files))
        self._files = files

    def read(self, name: str, bytes_max: int = MIB) -> bytes:
        if name not in self._files:
            raise SourceError(name)
        if len(self._files[name]) > bytes_max:
            raise ForeignImageError(name)
        return self._files[name]


@functools.cache
def _empty_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="diskcast-fuzz-"))


def _described(describe: Callable[[ImageDirectory], DiskDescription]) -> Callable[[bytes], None]:
    def decode(data: bytes) -> None:
        try:
            files = json.loads(data)
        except ValueError:
            return
        if not isinstance(files, dict):
            return
        content = {str(name): str(text).encode("latin-1", "replace") for name, text in files.items()}
        with _FilesInMemory(content) as directory:
            disk = describe(directory)
        _check_table(disk)
        for part in disk.contents:
            assert all("/" not in name and name in content for name in part.names)

    return decode


def _gpt_sectors() -> bytes:
    dump = parse_dump_untrusted(GPT_DUMP.encode(), "sda")
    disk = bytearray(34 * 512)
    for offset, data in build_table(dump, TableFiles(), "sda").writes:
        if offset < len(disk):
            disk[offset : offset + len(data)] = data
    return bytes(disk)


def _clonezilla_seeds() -> list[bytes]:
    gpt = {
        "sda-pt.sf": GPT_DUMP,
        "sda-gpt-1st": _gpt_sectors().decode("latin-1"),
        "sda1.ext4-ptcl-img.gz.aa": "",
    }
    mbr = {
        "sda-pt.sf": MBR_DUMP,
        "sda-mbr": "x" * 510,
        "sda-hidden-data-after-mbr": "y" * 600,
        "sda-pt.parted": "Disk /dev/sda: 65536s\n",
        "sda1.dd-img": "",
        "swappt-sda5.info": f'UUID="{LINUX}"\nLABEL="swap"\n',
    }
    both = {"disk": "sda\n", "parts": "sda1\n"}
    return [json.dumps(both | gpt).encode(), json.dumps(both | mbr).encode()]


def _fog_seeds() -> list[bytes]:
    raw = _gpt_sectors()
    saved = raw[:1024] + bytes(512) + raw[1024:]
    gpt = {"d1.partitions": GPT_DUMP, "d1.mbr": saved.decode("latin-1"), "d1p1.img": ""}
    mbr = {
        "d1.original.partitions": MBR_DUMP,
        "d1.size": "1:33554432\n",
        "d1p1.img.000": "",
        "d1p1.img.001": "",
        "d1p6.img": "",
        "d1.original.swapuuids": f"/dev/sda5 {LINUX}\n",
    }
    return [json.dumps(gpt).encode(), json.dumps(mbr).encode()]


ERRORS = (ForeignImageError, SourceError)
TARGETS = (
    Target("partclone image", _read_partclone, (ForeignImageError,), _partclone_seeds, repair=repair_header),
    Target(
        "partition table of sfdisk",
        _read_dump,
        (ForeignImageError,),
        lambda: [text.encode() for text in DUMPS],
        share=4,
    ),
    Target(
        "directory of Clonezilla",
        _described(describe_clonezilla_untrusted),
        ERRORS,
        _clonezilla_seeds,
        Structure.JSON,
        share=2,
    ),
    Target(
        "directory of FOG", _described(describe_fog_untrusted), ERRORS, _fog_seeds, Structure.JSON, share=2
    ),
)
