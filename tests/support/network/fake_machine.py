"""A fake machine made of files: sysfs, proc and udev's database as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

from receiver.disk.inventory.block_devices import BlockDevice, DiskInventory, SystemPaths
from receiver.disk.inventory.holders import LoopFile
from receiver.disk.inventory.read_devices import read_inventory

GIB = 1 << 30


class FakeMachine:
    """A machine to which a test adds disks; :func:`read_inventory` reads its ``system_paths``."""

    def __init__(self, root: Path) -> None:
        self.system_paths = SystemPaths(root / "sys", root / "proc", root / "dev", root / "udev")
        for folder in (root / "sys/block", root / "proc/self", root / "dev", root / "udev"):
            folder.mkdir(parents=True)
        self._mounts: list[str] = []
        self._swaps = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"]
        self.loop_files: dict[str, LoopFile] = {}
        self._write_proc()

    def disk(
        self,
        name: str,
        number: str,
        *,
        size_bytes: int = 64 * GIB,
        tree: str = "pci0000:00/ata1/host0/target0:0:0/0:0:0:0",
        files: dict[str, str] | None = None,
        udev: dict[str, str] | None = None,
    ) -> Path:
        """Add a disk; ``files`` are written into its folder, and replace the usual ones."""
        folder = self.system_paths.sys / "devices" / tree / "block" / name
        usual = {
            "dev": number,
            "size": str(size_bytes // 512),
            "ro": "0",
            "removable": "0",
            "diskseq": number.replace(":", ""),
            "queue/logical_block_size": "512",
            "queue/physical_block_size": "512",
            "queue/rotational": "0",
        }
        _fill(folder, {**usual, **(files or {})})
        for kind in ("holders", "slaves"):
            (folder / kind).mkdir()
        (self.system_paths.sys / "block" / name).symlink_to(folder)
        if udev:
            record = "".join(f"E:{key}={value}\n" for key, value in udev.items())
            (self.system_paths.udev / f"b{number}").write_text(record)
        return folder

    def partition(self, disk: str, index: int, number: str, *, size_bytes: int = GIB, name: str = "") -> str:
        """Add a partition of ``disk``."""
        name = name or (f"{disk}p{index}" if disk[-1].isdigit() else f"{disk}{index}")
        folder = (self.system_paths.sys / "block" / disk).resolve() / name
        _fill(folder, {"dev": number, "size": str(size_bytes // 512), "ro": "0", "partition": str(index)})
        (folder / "holders").mkdir()
        return name

    def stacked(self, name: str, number: str, on: list[str], files: dict[str, str] | None = None) -> None:
        """Add a device-mapper device or RAID on other devices."""
        folder = self.disk(name, number, tree="virtual", files=files)
        for below in on:
            (folder / "slaves" / below).mkdir()
            (self._folder(below) / "holders" / name).mkdir()

    def loop(self, name: str, number: str, backing: str, filesystem: str = "0:0", inode: int = 0) -> None:
        """Add a loop device; ``filesystem`` and ``inode`` identify its backing file."""
        self.disk(name, number, tree="virtual", files={"loop/backing_file": backing})
        self.loop_files[name] = LoopFile(device_number(filesystem), inode)

    def mount(
        self, number: str, point: str, *, filesystem: str = "ext4", source: str = "none", options: str = "rw"
    ) -> None:
        """Append a line to mountinfo."""
        escaped = point.replace(" ", "\\040")
        line = (
            f"{len(self._mounts) + 20} 1 {number} / {escaped} rw shared:1 - {filesystem} {source} {options}"
        )
        self._mounts.append(line)
        self._write_proc()

    def swap(self, path: str) -> None:
        """Append a line to swaps."""
        self._swaps.append(f"{path} partition\t1048572\t0\t-2")
        self._write_proc()

    def node(self, name: str) -> str:
        """Return the path of a device."""
        return str(self.system_paths.dev / name)

    def inventory(self) -> DiskInventory:
        return read_inventory(self.system_paths)

    def device(self, name: str) -> BlockDevice:
        device = self.inventory().by_name(name)
        assert device is not None, name
        return device

    def probe(self, device: BlockDevice) -> LoopFile | None:
        """Return the backing file of a loop device."""
        return self.loop_files.get(device.name)

    def _folder(self, name: str) -> Path:
        direct = self.system_paths.sys / "block" / name
        if direct.exists():
            return direct
        return next(
            disk / name for disk in (self.system_paths.sys / "block").iterdir() if (disk / name).exists()
        )

    def _write_proc(self) -> None:
        (self.system_paths.proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in self._mounts))
        (self.system_paths.proc / "swaps").write_text("".join(f"{line}\n" for line in self._swaps))


def device_number(text: str) -> int:
    """Return a number such as ``8:1`` as ``st_rdev``."""
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


def _fill(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
