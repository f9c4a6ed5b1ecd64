"""Images of other programs, made by their own tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

QEMU_KINDS = {
    "qcow2": ("qcow2", ""),
    "qcow2 compressed": ("qcow2", "compression_type=zstd"),
    "vmdk": ("vmdk", ""),
    "vmdk monolithicFlat": ("vmdk", "subformat=monolithicFlat"),
    "vmdk twoGbMaxExtentSparse": ("vmdk", "subformat=twoGbMaxExtentSparse"),
    "vmdk twoGbMaxExtentFlat": ("vmdk", "subformat=twoGbMaxExtentFlat"),
    "vmdk streamOptimized": ("vmdk", "subformat=streamOptimized"),
    "vhd dynamic": ("vpc", "force_size=on"),
    "vhd fixed": ("vpc", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx", ""),
    "vhdx fixed": ("vhdx", "subformat=fixed"),
    "vdi": ("vdi", ""),
    "vdi static": ("vdi", "static=on"),
}
"""Driver and options of ``qemu-img`` by the kind of virtual disk."""

COMPRESSORS = {
    "gzip": ("gzip", "-c"),
    "xz": ("xz", "-1c"),
    "zstd": ("zstd", "-qc"),
    "bzip2": ("bzip2", "-1c"),
}
"""Commands that compress their standard input."""


def make_virtual_disk(raw: Path, output: Path, kind: str) -> Path:
    """Convert a raw disk into one of :data:`QEMU_KINDS`."""
    driver, options = QEMU_KINDS[kind]
    compress = ["-c"] if "compressed" in kind else []
    arguments = ["-f", "raw", "-O", driver, *compress, *(["-o", options] if options else [])]
    subprocess.run(["qemu-img", "convert", *arguments, raw, output], check=True)
    return output


def compress_disk(raw: Path, output: Path, kind: str) -> Path:
    """Compress a raw disk by one of :data:`COMPRESSORS`."""
    with raw.open("rb") as source, output.open("wb") as target:
        subprocess.run(COMPRESSORS[kind], stdin=source, stdout=target, check=True)
    return output
