"""A folder of tools that every user can reach, as those of the system: confined tools run as a user of their own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tool_folder() -> Iterator[Path]:
    """Provide an empty folder; pytest's own are for one user only."""
    folder = Path(tempfile.mkdtemp(prefix="diskcast-tools-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
