"""A desk for captures without any, for parts of the daemon that ask it."""

from __future__ import annotations

from pathlib import Path

from sender.config.sections import LibrarySection
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.captures.upload_opener import UploadOpener
from sender.daemon.jobs.change_notifier import ChangeNotifier
from sender.library.library import Library
from sender.store.store import Store


def idle_captures(store: Store, changes: ChangeNotifier, folder: Path = Path("/nonexistent")) -> CaptureDesk:
    """Return a desk whose images would go to ``folder``."""
    library = Library(LibrarySection(), None)
    return CaptureDesk(store, library, UploadOpener(library), changes, folder, "lab", uploads_at_once=1)
