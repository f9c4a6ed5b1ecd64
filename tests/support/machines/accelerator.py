"""The accelerator of the tests' virtual machines, determined once."""

from __future__ import annotations

import functools

from sender.export.accelerator import Accelerator, find_accelerator
from tests.support.programs.processes import require_program


@functools.cache
def accelerator() -> Accelerator:
    """Return KVM if a machine runs with it here, else TCG."""
    return find_accelerator(require_program("qemu-system-x86_64"))
