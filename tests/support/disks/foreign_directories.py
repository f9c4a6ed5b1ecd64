"""Image directories of Clonezilla and FOG, made by the commands of their own scripts on loop devices."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol.constants import MIB
from tests.support.disks.devices import loop_device
from tests.support.disks.filesystems import FILESYSTEMS, Filesystem, Tree
from tests.support.network.lab import run

SECTOR = 512
SWAP_UUID = "6f0d9a86-4c41-4f0f-9d3c-6f2a0c8a5e11"
TYPES = {
    "gpt": {"fat32": "U", "ntfs": "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "swap": "S"},
    "dos": {"fat32": "c", "fat16": "6", "ntfs": "7", "swap": "S"},
}
PARTCLONE = {"fat": "vfat", "extfs": "ext4"}
"""Words of Clonezilla's file names for partclone's programs."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One partition with a filled filesystem."""

    number: int
    kind: Filesystem
    start: int
    size: int

    @property
    def program(self) -> str:
        """Return the program that clones it."""
        return self.kind.partclone


@dataclasses.dataclass(frozen=True)
class FilledDisk:
    """A raw disk, its partitions, and the content of each filesystem."""

    path: Path
    table: str
    parts: tuple[Part, ...]
    trees: dict[int, Tree]

    @contextlib.contextmanager
    def device(self, part: Part) -> Iterator[Path]:
        """Provide a loop device over one partition."""
        with loop_device(self.path, "--offset", str(part.start), "--sizelimit", str(part.size)) as device:
            yield device


def make_disk(folder: Path, table: str, kinds: Sequence[str]) -> FilledDisk:
    """Create a disk with one partition for each of ``kinds``; from the fourth on they are logical ones on an MBR."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, name in enumerate(kinds):
        path = folder / f"{number}-{name}"
        FILESYSTEMS[name].create(path)
        if name == "swap":
            run("mkswap", "-U", SWAP_UUID, "-L", "resting", path)
        files.append(path)
    start, lines, starts = MIB, [], []
    for index, (name, path) in enumerate(zip(kinds, files, strict=True)):
        number = index + 1
        if table == "dos" and index >= 3:
            if index == 3:
                lines.append(f"4 : start={start // SECTOR}, type=5")
                start += MIB
            number = index + 2
        size = path.stat().st_size
        kind = TYPES[table].get(name, "L")
        boot = ", bootable" if index == 0 and table == "dos" else ""
        text = f', name="disk part {number}"' if table == "gpt" else ""
        lines.append(f"{number} : start={start // SECTOR}, size={size // SECTOR}, type={kind}{text}{boot}")
        starts.append((number, start))
        start += size + 2 * MIB
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(start + 3 * MIB)
    run(
        "sfdisk",
        "--quiet",
        "--no-reread",
        "--wipe",
        "never",
        disk,
        text=f"label: {table}\n" + "\n".join(lines) + "\n",
    )
    parts = []
    with disk.open("r+b") as file:
        file.write(b"boot code of this disk".ljust(440, b"\xeb"))
        if table == "dos":
            file.seek(2 * SECTOR)
            file.write(b"hidden sectors" * 500)
        for (number, place), name, path in zip(starts, kinds, files, strict=True):
            file.seek(place)
            file.write(path.read_bytes())
            parts.append(Part(number, FILESYSTEMS[name], place, path.stat().st_size))
    trees = {part.number: part.kind.tree(path) for part, path in zip(parts, files, strict=True)}
    return FilledDisk(disk, table, tuple(parts), trees)


def _dump(device: Path) -> str:
    return re.sub(rf"{re.escape(str(device))}p?", "/dev/sda", run("sfdisk", "-d", device))


def _pipe(*commands: Sequence[object]) -> None:
    line = " | ".join(shlex.join(map(str, command)) for command in commands)
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True, capture_output=True)


def save_by_clonezilla(
    disk: FilledDisk, folder: Path, compressor: Sequence[str] = ("gzip", "-c"), suffix: str = "gz"
) -> Path:
    """Save the disk by the commands of ``ocs-sr savedisk``, split into pieces of 3 MB."""
    folder.mkdir()
    with loop_device(disk.path) as device:
        (folder / "sda-pt.sf").write_text(_dump(device))
        sectors = disk.path.stat().st_size // SECTOR
        (folder / "sda-pt.parted").write_text(
            f"Model: Loopback device (loopback)\nDisk {device}: {sectors}s\n".replace(str(device), "/dev/sda")
        )
        run("dd", f"if={device}", f"of={folder}/sda-mbr", "bs=512", "count=1", "status=none")
        if disk.table == "gpt":
            run("dd", f"if={device}", f"of={folder}/sda-gpt-1st", "bs=512", "count=34", "status=none")
            second = ("bs=512", "count=33", f"skip={sectors - 33 + 1}", "status=none")
            run("dd", f"if={device}", f"of={folder}/sda-gpt-2nd", *second)
            run("sgdisk", "-b", folder / "sda-gpt.gdisk", device)
        else:
            hidden = ("bs=512", "skip=1", "count=2047", "status=none")
            run("dd", f"if={device}", f"of={folder}/sda-hidden-data-after-mbr", *hidden)
    names = []
    for part in disk.parts:
        name = f"sda{part.number}"
        with disk.device(part) as device:
            if part.kind.name == "swap":
                (folder / f"swappt-{name}.info").write_text(f'UUID="{SWAP_UUID}"\nLABEL="resting"\n')
                continue
            names.append(name)
            word = part.program.removeprefix("partclone.")
            clone = (part.program, "-z", "10485760", "-L", "/dev/null", "-c", "-s", device, "--output", "-")
            pieces = folder / f"{name}.{PARTCLONE.get(word, word)}-ptcl-img.{suffix}."
            _pipe(clone, compressor, ("split", "-a", "2", "-b", "3MB", "-", pieces))
    (folder / "parts").write_text(" ".join(names) + "\n")
    (folder / "disk").write_text("sda\n")
    (folder / "Info-packages.txt").write_text("Image was saved by these Clonezilla-related packages:\n")
    return folder


def save_by_fog(disk: FilledDisk, folder: Path, compressor: Sequence[str], *, split: bool = False) -> Path:
    """Save the disk by the commands of FOG's capture of a disk without resizing."""
    folder.mkdir()
    with loop_device(disk.path) as device:
        (folder / "d1.partitions").write_text(_dump(device))
        if disk.table == "gpt":
            run("sgdisk", "-b", folder / "d1.mbr", device)
        else:
            run("dd", f"if={device}", f"of={folder}/d1.mbr", "count=2048", "bs=512", "status=none")
            (folder / "d1p4.ebr").touch()
    for part in disk.parts:
        with disk.device(part) as device:
            if part.kind.name == "swap":
                (folder / "d1.original.swapuuids").write_text(f"{part.number} {SWAP_UUID}\n")
                continue
            target = folder / f"d1p{part.number}.img"
            clone = (
                part.program,
                "-n",
                "Image name lab",
                "-cs",
                device,
                "-O",
                "-",
                "-f",
                "1",
                "-a0",
                "-L",
                "/dev/null",
            )
            if split:
                _pipe(clone, compressor, ("split", "-a", "3", "-d", "-b", "5m", "-", f"{target}."))
            else:
                _pipe(clone, compressor, ("dd", f"of={target}", "status=none"))
    (folder / "d1.fixed_size_partitions").write_text("1\n")
    return folder
