"""The choice of kernel modules: subtrees and single modules, with everything that they need by ``modules.dep``."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.host_programs import run_host_program

TREES: Final = (
    "drivers/ata", "drivers/block", "drivers/firmware/efi", "drivers/hid/usbhid", "drivers/hv", "drivers/input/serio",
    "drivers/md", "drivers/message", "drivers/mmc", "drivers/net/ethernet", "drivers/net/hyperv", "drivers/net/mdio",
    "drivers/net/pcs", "drivers/net/phy", "drivers/net/usb", "drivers/net/vmxnet3", "drivers/nvme/host",
    "drivers/pci/controller", "drivers/scsi", "drivers/usb/host", "drivers/usb/storage", "drivers/virtio",
)  # fmt: skip
"""Folders of ``kernel/``: every bus between a machine's processor and its disks, network cards and keyboard."""

SINGLES: Final = (
    "8021q", "af_packet", "atkbd", "bochs", "bonding", "cdc_ether", "crc32c_generic", "crc32c_intel", "efivarfs",
    "ext4", "btrfs", "exfat", "fat", "hid_generic", "i2c_i801", "intel_lpss_pci", "isofs", "loop", "net_failover",
    "nls_ascii", "nls_cp437", "nls_iso8859-1", "nls_utf8", "ntfs3", "overlay", "simpledrm", "squashfs", "uas", "udf",
    "vfat", "virtio_net", "virtio_pci", "vmd", "xfs",
)  # fmt: skip
"""Modules outside of :data:`TREES`: filesystems of images and sticks, VLAN, bonding, a console without firmware."""

UNWANTED: Final = (
    "drivers/block/aoe", "drivers/block/drbd", "drivers/block/nbd", "drivers/block/null_blk", "drivers/block/pktcdvd",
    "drivers/block/rbd", "drivers/block/rnbd", "drivers/block/ublk_drv", "drivers/block/zram", "drivers/md/bcache",
    "drivers/md/dm-vdo", "drivers/net/ethernet/chelsio/cxgb", "drivers/net/ethernet/chelsio/libcxgb",
    "drivers/net/ethernet/qlogic/netxen", "drivers/scsi/be2iscsi", "drivers/scsi/bfa", "drivers/scsi/bnx2fc",
    "drivers/scsi/bnx2i", "drivers/scsi/csiostor", "drivers/scsi/cxgbi", "drivers/scsi/elx", "drivers/scsi/fcoe",
    "drivers/scsi/fnic", "drivers/scsi/iscsi", "drivers/scsi/libfc", "drivers/scsi/libiscsi", "drivers/scsi/lpfc",
    "drivers/scsi/pcmcia", "drivers/scsi/qedf", "drivers/scsi/qedi", "drivers/scsi/qla2xxx", "drivers/scsi/qla4xxx",
    "drivers/scsi/scsi_debug", "drivers/usb/host/sl811", "drivers/virtio/virtio_mem",
)  # fmt: skip
"""Start of paths: disks of storage networks, which no image is written to, and devices that are no hardware."""

FIRST_STAGE: Final = ("loop", "squashfs", "overlay")
"""Modules that the first stage needs to mount the root filesystem, with their dependencies."""

INDEXES: Final = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
"""Files that ``depmod`` reads besides the modules."""

_FIRMWARE: Final = re.compile(rb"\0firmware=([\x21-\x7e]{1,255})(?=\0)")
_BUILTIN_FIRMWARE: Final = re.compile(rb"(?:^|\0)[^\0=]+\.firmware=([\x21-\x7e]{1,255})(?=\0)")


def parse_modules_dep(text: str) -> dict[str, tuple[str, ...]]:
    """Return the modules that each module needs, transitively, from the text of ``modules.dep``."""
    rows = (line.partition(":") for line in text.splitlines())
    return {module: tuple(needed.split()) for module, _, needed in rows}


def module_name(path: str) -> str:
    """Return a module's name, as the kernel has it, from the path of its file."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def choose_modules(needs: Mapping[str, Collection[str]]) -> set[str]:
    """Return the paths of the live system's modules.

    Args:
        needs: modules that each module needs, by path, as :func:`parse_modules_dep` returns them.
    """
    by_name = {module_name(path): path for path in needs}
    chosen = {path for path in needs if _is_in_trees(path)}
    chosen |= {by_name[name] for name in map(module_name, SINGLES) if name in by_name}
    return chosen.union(*(needs[path] for path in chosen))


def first_stage_modules(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Return the first stage's modules in the order in which they can be inserted.

    A module that this kernel has built in isn't among them.
    """
    by_name = {module_name(path): path for path in needs}
    ordered: dict[str, None] = {}
    for name in FIRST_STAGE:
        if name in by_name:
            # modules.dep lists the nearest dependency first; the last one needs no other.
            ordered |= dict.fromkeys([*reversed(list(needs[by_name[name]])), by_name[name]])
    return list(ordered)


def _is_in_trees(path: str) -> bool:
    inside = path.removeprefix("kernel/")
    return inside.startswith(tuple(f"{tree}/" for tree in TREES)) and not inside.startswith(UNWANTED)


def index_modules(tree: Path, release: str) -> None:
    """Write ``modules.dep`` and the other indexes of the modules in ``tree``."""
    run_host_program(["depmod", "-b", tree, release])


def copy_modules(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Copy modules with the files that depmod reads; compressed ones are unpacked.

    They keep their signatures: under Secure Boot the kernel loads no others. Unpacked, they compress together with the
    whole root filesystem, which is smaller and needs no second decompressor in the first stage.
    """
    for path in sorted(paths):
        to = target / unpacked_name(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".ko"):
            shutil.copyfile(source / path, to)
        else:
            to.write_bytes(read_module(source / path))
    for name in INDEXES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def unpacked_name(path: str) -> str:
    """Return a module's path without the suffix of its compression."""
    return path.removesuffix(".xz")


def read_module(path: Path) -> bytes:
    """Return the unpacked content of a module.

    Raises:
        ConfigurationError: this program can't unpack it.
    """
    content = path.read_bytes()
    if path.suffix == ".ko":
        return content
    if path.suffix == ".xz":
        return lzma.decompress(content)
    raise ConfigurationError(
        f"{path.name} has an unknown compression: build with a --suite whose kernel modules end in .ko or .ko.xz"
    )


def firmware_names(modules: Iterable[bytes], builtin: bytes) -> set[str]:
    """Return the firmware files that modules name in their ``.modinfo`` sections, as ``modinfo -F firmware`` does.

    Args:
        modules: contents of the modules.
        builtin: content of ``modules.builtin.modinfo``, for the drivers in the kernel itself.
    """
    found = {name for content in modules for name in _FIRMWARE.findall(content)}
    found |= set(_BUILTIN_FIRMWARE.findall(builtin))
    return {name.decode() for name in found}
