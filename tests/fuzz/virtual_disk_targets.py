"""Fuzz targets of virtual disks: the headers that are checked before a tool sees the image."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from protocol.errors import ForeignImageError
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.foreign.virtual_disk_headers import (
    VmdkDescriptor,
    parse_vmdk_descriptor_untrusted,
    virtual_size_untrusted,
    vmdk_sparse_size_untrusted,
)
from tests.fuzz.target import Target

DRIVERS: Final = {
    ForeignFormat.QCOW2: "qcow2",
    ForeignFormat.VMDK: "vmdk",
    ForeignFormat.VHD: "vpc",
    ForeignFormat.VHDX: "vhdx",
    ForeignFormat.VDI: "vdi",
}
DESCRIPTOR: Final = b"""# Disk DescriptorFile
version=1
parentCID=ffffffff
createType="twoGbMaxExtentSparse"

RW 4194304 SPARSE "d-s001.vmdk"
RW 2097152 FLAT "d-f002.vmdk" 128
RW 2097152 VMFS "d-f003.vmdk"
RW 100 ZERO
"""
_HEAD_BYTES: Final = 4 << 20
"""All metadata of a small image is in its start."""


def _decode(data: bytes) -> object:
    kind = list(DRIVERS)[data[0] % len(DRIVERS)] if data else ForeignFormat.QCOW2
    content = data[1:]

    def read(offset: int, length: int) -> bytes:
        return content[offset : offset + length]

    if kind is ForeignFormat.VMDK and content.startswith(b"KDMV"):
        vmdk_sparse_size_untrusted(read)
    return virtual_size_untrusted(kind, read, len(content))


def _decode_descriptor(data: bytes) -> object:
    descriptor = parse_vmdk_descriptor_untrusted(data)
    assert isinstance(descriptor, VmdkDescriptor)
    copy = descriptor.with_names({extent.name: "/proc/self/fd/9" for extent in descriptor.extents})
    assert copy.count('"/proc/self/fd/9"') == copy.count('"') // 2 - 2, "no other name is in the copy"
    return descriptor


def _seeds() -> list[bytes]:
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for index, driver in enumerate(DRIVERS.values()):
            path = Path(folder, driver)
            subprocess.run(["qemu-img", "create", "-q", "-f", driver, path, "8M"], check=True)
            content = path.read_bytes()
            seeds.append(bytes([index]) + (content if len(content) < _HEAD_BYTES else content[:_HEAD_BYTES]))
    return seeds


TARGETS = (
    Target("virtual disk", _decode, (ForeignImageError,), _seeds, share=1),
    Target("VMDK descriptor", _decode_descriptor, (ForeignImageError,), lambda: [DESCRIPTOR], share=2),
)
