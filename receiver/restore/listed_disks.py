"""The disks of this machine with their content and their verdict as targets, for people who choose one."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from typing import Final

from protocol.errors import TargetIsSystemDiskError
from receiver.disk.inventory.block_devices import BlockDevice, DeviceKind, DiskInventory
from receiver.disk.inventory.disk_contents import DiskContents, read_contents
from receiver.disk.inventory.holders import loop_file
from receiver.target.eligibility import ImageNeeds, Refusal, incompatibility, judge, refuse_boot_stick

_READERS: Final = 8
"""Reader threads: sleeping disks wake up in parallel."""


@dataclasses.dataclass(frozen=True, slots=True)
class ListedDisk:
    """A disk; ``refusal`` is None if it is usable."""

    disk: BlockDevice
    contents: DiskContents
    refusal: Refusal | None


def list_disks(inventory: DiskInventory, needs: ImageNeeds) -> list[ListedDisk]:
    """Return all disks, judged as targets of an image; reads them, and opens none for writing."""
    probe = functools.cache(loop_file)

    def examine(disk: BlockDevice) -> ListedDisk:
        refusal = judge(disk, inventory, needs, probe=probe) or incompatibility(
            needs, disk.path, disk.sector_bytes, is_partition=False
        )
        if refusal is not None and refusal.error_class is TargetIsSystemDiskError:
            return ListedDisk(disk, DiskContents("the running system"), refusal)
        contents = read_contents(disk.path, disk.size_bytes, disk.sector_bytes)
        return ListedDisk(disk, contents, refusal or refuse_boot_stick(disk, contents))

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(examine, inventory.disks()))


def describe_model(disk: BlockDevice) -> str:
    """Return the model, or else the kind, with the transport."""
    name = disk.model or (disk.kind.value if disk.kind is not DeviceKind.DISK else "")
    marks = [disk.transport] if disk.transport else []
    marks += ["removable"] if disk.removable else []
    return " ".join(filter(None, [name, f"({', '.join(marks)})" if marks else ""]))
