"""The boot medium that the commands use when they are given no directory."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Final

from sender.netboot.medium import RECORD, BootMedium, MediumRecord

DEFAULT_MEDIUM_WORDS: Final = "netboot in the state directory"


def default_medium_directory() -> Path:
    """Return the directory: ``/var/lib/diskcast/netboot`` for root."""
    from sender.config.sections import default_state_directory

    return default_state_directory() / "netboot"


def exists(directory: Path) -> bool:
    """Return whether a finished medium is there."""
    return (directory / RECORD).exists()


def outdated_because(record: MediumRecord, pins: tuple[str, ...], key_ids: tuple[str, ...]) -> str:
    """Return the reason why machines that boot a medium couldn't be imaged from here; empty if there is none.

    Args:
        record: of the medium.
        pins: certificates of this machine's daemon.
        key_ids: keys that sign images here.
    """
    version = importlib.metadata.version("diskcast")
    if record.diskcast_version != version:
        return f"it is of diskcast {record.diskcast_version}, this is {version}"
    if record.pins and not set(pins) <= set(record.pins):
        return "the daemon has another certificate"
    unknown = [key_id for key_id in key_ids if key_id not in record.trusted_keys]
    if unknown:
        return f"it doesn't trust images of the key {unknown[0]}"
    return ""


def open_medium(directory: Path | None) -> BootMedium:
    """Open a medium, by default the one in the state directory.

    Raises:
        ConfigurationError: there is no complete medium.
    """
    return BootMedium.open(directory or default_medium_directory())
