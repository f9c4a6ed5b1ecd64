"""Private mounts, in a mount namespace of the calling thread."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.program.confinement import KERNEL_TOOL
from receiver.disk.fit.programs import MOUNT_TIME_LIMIT_S, StepError, run_program

_CLONE_NEWNS: Final = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def mounted_privately(device: Path, filesystem: str, *options: str) -> Iterator[Path]:
    """Mount ``device`` in a directory that only the calling thread and its child processes see.

    Desktops, daemons and ``lsblk`` don't see it, and the kernel unmounts it when the last of these processes has
    exited, killed or not. The thread stays in its namespace: call this only from a thread that ends with its work,
    never from the main thread.

    Raises:
        StepError: mounting or unmounting failed.
    """
    assert threading.current_thread() is not threading.main_thread()
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise StepError(f"no private mount namespace can be created: {os.strerror(ctypes.get_errno())}")
    # Otherwise a shared root would propagate the mount to all processes.
    run_program(["mount", "--make-rprivate", "/"], confinement=KERNEL_TOOL, time_limit_s=MOUNT_TIME_LIMIT_S)
    directory = tempfile.mkdtemp(prefix="diskcast-fit-")
    try:
        all_options = ",".join(("nosuid", "nodev", "noexec", *options))
        argv: list[str | Path] = ["mount", "-t", filesystem, "-o", all_options, device, directory]
        run_program(argv, confinement=KERNEL_TOOL, time_limit_s=MOUNT_TIME_LIMIT_S)
        try:
            yield Path(directory)
        finally:
            run_program(["umount", directory], confinement=KERNEL_TOOL, time_limit_s=MOUNT_TIME_LIMIT_S)
    finally:
        # rmdir, never a recursive removal: a directory that is still mounted holds the operator's files.
        with contextlib.suppress(OSError):
            Path(directory).rmdir()
