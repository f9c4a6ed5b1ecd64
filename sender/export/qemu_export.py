"""Export of an image by qemu-img, confined, which reads from this program's NBD server over an inherited socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from protocol.constants import MIB
from protocol.errors import ImageDamagedError, MissingDependencyError, StorageError
from protocol.program.confinement import ENVIRONMENT, Confinement
from protocol.program.system_call_filter import machine_is_supported
from protocol.program.system_tools import find_tool
from sender.export.export_format import QemuFormat
from sender.export.nbd_server import NbdServer
from sender.export.raw_export import stored_raw_bytes
from sender.imaging.image_file import ImageFile
from sender.imaging.partial_file import PartialFile

QEMU_IMG: Final = "qemu-img"
PACKAGE: Final = "qemu-utils"

_TIME_LIMIT_S: Final = 48 * 3600.0
"""Limit of the processor time: ten terabytes at 60 MB/s."""

_PROGRESS_INTERVAL_S: Final = 0.2
_METADATA_BYTES_MAX: Final = 256 * MIB
_METADATA_SHIFT: Final = 5
"""Metadata of the formats: 1/2048 in qcow2, 1/500 in VHD. A file that is 1/32 larger than the disk is faulty."""

_STDERR_BYTES_MAX: Final = 4096
_NO_SPACE: Final = "No space left on device"


def require_qemu_img() -> str:
    """Return the path of qemu-img.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    program = find_tool(QEMU_IMG)
    if program is None:
        raise MissingDependencyError(f"{QEMU_IMG} isn't installed: apt install {PACKAGE}, or export to raw")
    return program


def write_by_qemu(
    image: ImageFile, output: PartialFile, kind: QemuFormat, on_progress: Callable[[int, int], None]
) -> None:
    """Write the image's disk in one of QEMU's formats.

    qemu-img sees two inherited descriptors: a socket to the disk, and the output. It may open no other file and no
    socket. The driver is named, so that a disk that starts like an image of another format isn't opened as one.

    Raises:
        ImageDamagedError: a block doesn't match the image.
        MissingDependencyError: qemu-img isn't installed.
        StorageError: the output's disk is full or failed, or qemu-img failed.
    """
    asyncio.run(_write(image, output, kind, on_progress))


async def _write(
    image: ImageFile, output: PartialFile, kind: QemuFormat, on_progress: Callable[[int, int], None]
) -> None:
    program = require_qemu_img()
    damage: list[str] = []
    total_bytes = stored_raw_bytes(image)
    ours, theirs = socket.socketpair()
    with (
        contextlib.closing(theirs),
        NbdServer(image, on_damage=lambda _block, reason: damage.append(reason)) as server,
    ):
        reader, writer = await asyncio.open_connection(sock=ours)
        serving = asyncio.ensure_future(server.serve(reader, writer))
        target = f"/proc/self/fd/{output.fd}"
        confinement = Confinement(
            outputs=(target,),
            # It reads no file but its libraries: the disk comes over the socket.
            reads=() if machine_is_supported() else None,
            # The owner may open the output again through the descriptor.
            user_id=os.fstat(output.fd).st_uid,
            is_required=False,
            file_bytes_max=image.manifest.raw_bytes
            + (image.manifest.raw_bytes >> _METADATA_SHIFT)
            + _METADATA_BYTES_MAX,
        )
        source = f"driver=nbd,server.type=fd,server.str={theirs.fileno()}"
        options = ("-o", kind.options) if kind.options else ()
        argv = [QEMU_IMG, "convert", "--image-opts", source, "-O", kind.name, *options, target]
        process = await asyncio.create_subprocess_exec(
            *confinement.wrap(program, argv, time_limit_s=_TIME_LIMIT_S),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(), output.fd),
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        try:
            exited = asyncio.ensure_future(_exit_of(process))
            while not (await asyncio.wait([exited], timeout=_PROGRESS_INTERVAL_S))[0]:
                on_progress(min(server.served_bytes, total_bytes), total_bytes)
            message = exited.result()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    if damage:
        raise ImageDamagedError(damage[0])
    if process.returncode:
        if _NO_SPACE in message:
            raise StorageError(
                f"{output.path}: can't write the export: {_NO_SPACE}; free some space or choose another disk"
            )
        raise StorageError(f"{output.path}: {QEMU_IMG} failed with code {process.returncode}: {message}")
    on_progress(total_bytes, total_bytes)


async def _exit_of(process: asyncio.subprocess.Process) -> str:
    """Wait for the tool and return the end of its error output."""
    assert process.stderr is not None
    tail = b""
    while data := await process.stderr.read(_STDERR_BYTES_MAX):
        tail = (tail + data)[-_STDERR_BYTES_MAX:]
    await process.wait()
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines()]
    return "; ".join(line for line in lines if line and line.isprintable())
