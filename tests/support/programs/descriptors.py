"""What this process has open, for tests that nothing is left open."""

from __future__ import annotations

import collections
import contextlib
from pathlib import Path


def descriptors() -> collections.Counter[str]:
    """How often each thing is open.

    What lies in ``/proc`` is left out: threads that watch the programs of other tests look there now and then.
    """
    found: collections.Counter[str] = collections.Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            name = str(entry.readlink())
            found[name] += not name.startswith("/proc/")
    return found
