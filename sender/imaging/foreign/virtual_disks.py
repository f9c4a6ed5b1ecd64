"""Virtual disks: qcow2, VMDK, VHD, VHDX and VDI become a spool by qemu-img, in the sandbox.

qemu-img gets open descriptors, the format by name, and for a VMDK of several files a descriptor of our own: it never
opens a file that an image names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.constants import MIB
from protocol.errors import ForeignImageError, MissingDependencyError, StorageError
from protocol.image.provenance import Provenance, SourceChecksums
from protocol.program.sandbox import ForeignTool
from protocol.program.system_tools import ToolError, find_tool
from sender.imaging.foreign.foreign_file import ForeignFile
from sender.imaging.foreign.import_limits import ImportLimits, OnProgress, time_limit_s
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.foreign.spool import Spool
from sender.imaging.foreign.virtual_disk_headers import (
    SECTOR_BYTES,
    VmdkDescriptor,
    VmdkExtentKind,
    truncated,
    virtual_size_untrusted,
    vmdk_sparse_size_untrusted,
)

QEMU_IMG: Final = "qemu-img"
QEMU_PACKAGE: Final = "qemu-utils"

_OPTIONS: Final[Mapping[ForeignFormat, str]] = MappingProxyType(
    {
        ForeignFormat.QCOW2: "driver=qcow2",
        ForeignFormat.VMDK: "driver=vmdk",
        # QEMU takes the size of some VHDs from their geometry, which cuts off the end of the disk.
        ForeignFormat.VHD: "driver=vpc,force_size_calc=current_size",
        ForeignFormat.VHDX: "driver=vhdx",
        ForeignFormat.VDI: "driver=vdi",
    }
)
_REPORT_BYTES_MAX: Final = MIB
"""Reports of qemu-img in JSON: 200 bytes for each part of a VMDK."""
_REPORT_LIMIT_S: Final = 300.0
"""Reading the metadata of 4 TiB in small clusters: 512 MB."""
_MAP_LIMIT_S: Final = 3600.0
"""A map of 4 TiB in fragments of 64 KiB: 60 million lines."""
_MAPPED: Final = re.compile(rb'"length": (\d{1,20}),.*"offset": (\d{1,20})')
_PERCENT: Final = re.compile(rb"\((\d{1,3}\.\d\d)/100%\)")
_TEXT_MAX: Final = 32


def convert_virtual_disk(
    file: ForeignFile, kind: ForeignFormat, spool: Spool, limits: ImportLimits, on_progress: OnProgress
) -> Provenance:
    """Fill ``spool`` with the disk that a virtual disk describes, and return its origin.

    Args:
        file: the image; the extents of a VMDK are files beside it.
        kind: one of :data:`sender.imaging.foreign.sniff.VIRTUAL_DISK_FORMATS`.
        spool: an empty spool.
        limits: of the operator.
        on_progress: called in this thread.

    Raises:
        ForeignImageError, SandboxUnavailableError, MissingDependencyError, SourceError, StorageError: see
            :func:`sender.imaging.foreign.open_source.open_foreign`.
    """
    if find_tool(QEMU_IMG) is None:
        raise MissingDependencyError(f"{QEMU_IMG} isn't installed: install {QEMU_PACKAGE}")
    with contextlib.ExitStack() as stack:
        size = virtual_size_untrusted(kind, file.read, file.size_bytes)
        files, main_fd = [file], file.fd
        if isinstance(size, VmdkDescriptor):
            extents = _open_extents(size, file, stack)
            files += extents.values()
            main_fd = _write_descriptor(size, extents, spool.directory, stack)
            size = size.raw_bytes
        limits.check_raw_bytes(size)
        reads = (main_fd, *(extent.fd for extent in files if extent.fd != main_fd))
        options = f"{_OPTIONS[kind]},file.driver=file,file.filename=/proc/self/fd/{main_fd}"
        report = _report(("info", "--image-opts", options), reads, limits)
        _check_report(report)
        raw_bytes = _integer(report, "virtual-size")
        if abs(raw_bytes - size) >= SECTOR_BYTES:
            raise ForeignImageError(
                f"the header says {size} bytes, and {QEMU_IMG} found a disk of {raw_bytes}"
            )
        measured = _report(("measure", "-O", "raw", "--image-opts", options), reads, limits)
        spool.require_space(min(_integer(measured, "required"), raw_bytes))
        spool.set_size(raw_bytes)
        slack_bytes = _integer(report, "cluster-size") if kind is ForeignFormat.QCOW2 else 0
        _require_complete(options, reads, limits, max(part.size_bytes for part in files) + slack_bytes)
        _convert(options, reads, spool, limits, on_progress)
        for part in files:
            part.check_unchanged()
    return Provenance(kind.value, SourceChecksums.NONE, QEMU_IMG, _version(limits))


def _open_extents(
    descriptor: VmdkDescriptor, file: ForeignFile, stack: contextlib.ExitStack
) -> dict[str, ForeignFile]:
    """Open the files that a VMDK consists of, by their plain names in its own folder."""
    folder = file.path.absolute().parent
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, folder_fd)
    files: dict[str, ForeignFile] = {}
    for extent in descriptor.extents:
        if extent.kind is VmdkExtentKind.ZERO:
            continue
        if extent.name not in files:
            files[extent.name] = stack.enter_context(ForeignFile(folder / extent.name, dir_fd=folder_fd))
        part = files[extent.name]
        stop_bytes = (extent.offset_sectors + extent.sector_count) * SECTOR_BYTES
        if extent.kind is VmdkExtentKind.FLAT and stop_bytes > part.size_bytes:
            raise truncated()
        if extent.kind is VmdkExtentKind.SPARSE:
            vmdk_sparse_size_untrusted(part.read)
    return files


def _write_descriptor(
    descriptor: VmdkDescriptor, files: Mapping[str, ForeignFile], folder: Path, stack: contextlib.ExitStack
) -> int:
    """Write a descriptor that names descriptors of this process, and return its own."""
    copy = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115  it is one
    os.fchmod(copy.fileno(), 0o444)  # for the tool's user
    copy.write(
        descriptor.with_names({name: f"/proc/self/fd/{file.fd}" for name, file in files.items()}).encode()
    )
    return copy.fileno()


def _convert(
    options: str, reads: Sequence[int], spool: Spool, limits: ImportLimits, on_progress: OnProgress
) -> None:
    arguments = (
        # -n keeps the spool, which is a hole; -W lets eight requests run out of order.
        QEMU_IMG, "convert", "-p", "-n", "--target-is-zero", "-W",
        "--image-opts", options,
        "--target-image-opts", f"driver=raw,file.driver=file,file.filename=/proc/self/fd/{spool.fd}",
    )  # fmt: skip
    tool = ForeignTool(
        arguments,
        reads=reads,
        writes=(spool.fd,),
        written_bytes_max=spool.raw_bytes,
        time_limit_s=time_limit_s(spool.raw_bytes),
        allow_unsandboxed=limits.allow_unsandboxed,
    )
    try:
        with contextlib.closing(tool.output()) as output:
            for data in output:
                if shown := _PERCENT.findall(data):
                    done_bytes = int(spool.raw_bytes * min(1.0, float(shown[-1]) / 100))
                    on_progress(done_bytes, spool.raw_bytes)
    except ToolError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise StorageError(
                f"{spool.directory} is full: free space, or choose another directory for the output"
            ) from error
        raise _unreadable(error) from error


def _require_complete(options: str, reads: Sequence[int], limits: ImportLimits, stop_bytes_max: int) -> None:
    """Refuse an image whose map leads behind the end of its file: qemu-img reads zeros there, without an error.

    The last cluster of a qcow2 image may be short, since QEMU doesn't write zeros at its end.
    """
    arguments = (QEMU_IMG, "map", "--output=json", "--image-opts", options)
    tool = ForeignTool(
        arguments, reads=reads, time_limit_s=_MAP_LIMIT_S, allow_unsandboxed=limits.allow_unsandboxed
    )
    rest = b""
    try:
        with contextlib.closing(tool.output()) as output:
            for data in output:
                *lines, rest = (rest + data).split(b"\n")
                for line in (*lines, rest) if rest.endswith(b"]") else lines:
                    found = _MAPPED.search(line)
                    if found and int(found[1]) + int(found[2]) > stop_bytes_max:
                        raise truncated()
                if len(rest) > _REPORT_BYTES_MAX:
                    raise ForeignImageError(f"{QEMU_IMG} wrote an unreadable report")
    except ToolError as error:
        raise _unreadable(error) from error


def _report(arguments: Sequence[str], reads: Sequence[int], limits: ImportLimits) -> Mapping[str, object]:
    """Return a report of qemu-img."""
    tool = ForeignTool(
        (QEMU_IMG, arguments[0], "--output=json", *arguments[1:]),
        reads=reads,
        time_limit_s=_REPORT_LIMIT_S,
        allow_unsandboxed=limits.allow_unsandboxed,
    )
    try:
        report = json.loads(tool.run(_REPORT_BYTES_MAX))
    except ToolError as error:
        raise _unreadable(error) from error
    except (ValueError, RecursionError) as error:
        raise ForeignImageError(f"{QEMU_IMG} wrote an unreadable report") from error
    if not isinstance(report, dict):
        raise ForeignImageError(f"{QEMU_IMG} wrote an unreadable report")
    return report


def _unreadable(error: ToolError) -> ForeignImageError:
    return ForeignImageError(f"the image can't be read: {error}; it is damaged, in use, or of another format")


def _check_report(report: Mapping[str, object]) -> None:
    """Refuse, by the tool's own words, everything that our checks of the header refused: they must agree."""
    specific = report.get("format-specific")
    data = specific.get("data") if isinstance(specific, dict) else None
    facts = {**report, **(data if isinstance(data, dict) else {})}
    for key in ("backing-filename", "full-backing-filename", "data-file", "encrypted", "encrypt", "corrupt"):
        if facts.get(key):
            raise ForeignImageError(f"the image isn't complete and plain: {QEMU_IMG} reports its {key}")


def _integer(report: Mapping[str, object], key: str) -> int:
    value = report.get(key)
    if type(value) is not int or value < 0:
        raise ForeignImageError(f"{QEMU_IMG} wrote an unreadable report")
    return value


def _version(limits: ImportLimits) -> str:
    tool = ForeignTool((QEMU_IMG, "--version"), allow_unsandboxed=limits.allow_unsandboxed)
    words = tool.run(_REPORT_BYTES_MAX).decode(errors="replace").split()
    found = words[2] if len(words) > 2 else ""
    return found[:_TEXT_MAX] if found.isprintable() else ""
