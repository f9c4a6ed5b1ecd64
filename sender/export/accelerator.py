"""The accelerator that QEMU can use here: KVM where a machine really runs with it, else TCG."""

from __future__ import annotations

import contextlib
import enum
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_PROBE_TIMEOUT_S: Final = 20.0
"""Limit of the probe, which takes 0.2 s where KVM works: nested KVM may hang instead of failing."""
_PROBE_PORT: Final = 0xF4
_PROBE_VALUE: Final = 0x21
_PROBE_EXIT: Final = (_PROBE_VALUE << 1) | 1
"""Exit code by which QEMU's isa-debug-exit reports the value written to its port."""
_PROBE_CODE: Final = bytes(
    [
        *(0xB0, _PROBE_VALUE),  # mov al, value
        *(0xE6, _PROBE_PORT),  # out port, al
        *(0xF4, 0xEB, 0xFD),  # hlt, for ever
    ]
)


class Accelerator(enum.StrEnum):
    """QEMU's ``-accel``."""

    KVM = "kvm"
    TCG = "tcg,thread=multi"


def find_accelerator(qemu: str | Path) -> Accelerator:
    """Return KVM if a boot sector runs with it, else TCG.

    ``/dev/kvm`` proves nothing: in containers it is often there, and using it fails.

    Args:
        qemu: path of ``qemu-system-x86_64``.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator.TCG
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "probe")
        disk.write_bytes(_PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa")
        argv = [
            *(qemu, "-accel", "kvm", "-m", "16", "-display", "none", "-nodefaults", "-no-user-config"),
            *("-drive", f"format=raw,readonly=on,file={disk}"),
            *("-device", f"isa-debug-exit,iobase={_PROBE_PORT:#x},iosize=4"),
        ]
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            done = subprocess.run(argv, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False)
            if done.returncode == _PROBE_EXIT:
                return Accelerator.KVM
    return Accelerator.TCG
