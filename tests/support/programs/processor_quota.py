"""A share of one processor for programs under test: a cgroup with a quota, of either version.

The kernel's work for a program's packets isn't charged to the cgroup.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.network.lab import LabError

_CGROUPS: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 20_000
"""Short, so that a throttled program runs slowly instead of now and then; the kernel's least quota is 1 ms."""
_EMPTY_WITHIN_S: Final = 5.0


class ProcessorQuota:
    """Programs that get ``share`` of one processor together; a context manager."""

    def __init__(self, share: float) -> None:
        self._quota_us = round(share * _PERIOD_US)
        self._group = Path()

    def __enter__(self) -> Self:
        name = f"diskcast-test-{os.getpid()}-{secrets.token_hex(2)}"
        try:
            if (_CGROUPS / "cgroup.controllers").exists():
                self._group = _CGROUPS / name
                (_CGROUPS / "cgroup.subtree_control").write_text("+cpu")
                self._group.mkdir()
                (self._group / "cpu.max").write_text(f"{self._quota_us} {_PERIOD_US}")
            else:
                self._group = _CGROUPS / "cpu" / name
                self._group.mkdir()
                (self._group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (self._group / "cpu.cfs_quota_us").write_text(str(self._quota_us))
        except OSError as error:
            self._remove()
            raise LabError(f"no cgroup with a processor quota: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def add(self, pid: int) -> None:
        """Limit a running program, with all of its threads, from now on."""
        (self._group / "cgroup.procs").write_text(str(pid))

    def _remove(self) -> None:
        if not self._group.is_dir():
            return
        deadline = time.monotonic() + _EMPTY_WITHIN_S
        while (self._group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._group.rmdir()
