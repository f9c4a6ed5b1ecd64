"""A watched folder: periodic scans for image files.

Scans rather than notifications: a file server sends none, and a scan of a thousand names costs milliseconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import structlog

from protocol.errors import DiskcastError, ImageDamagedError, ImageFormatError
from sender.blocking_calls import start_blocking_call
from sender.library.image_probe import SUFFIX, FoundImage, examine, printable
from sender.store.records.problems import Problem, ProblemKind

_log = structlog.get_logger(__name__)

FILES_MAX: Final = 10_000
"""Files of a folder, as many as a library can show and a scan can read; more are reported as a problem."""

SETTLE_S: Final = 10.0
"""Time without a change after which an incomplete image counts as damaged rather than being written."""

OLD_S: Final = 60.0
"""Age at which an incomplete image counts as damaged when it is first seen."""

RETRY_S: Final = 30.0
"""Interval between attempts to read an unreadable file (permissions, a failing disk)."""

ANSWER_S: Final = 10.0
"""Time after which a silent folder is reported; the call continues, and no second one is started."""

PUBLISH_S: Final = 1.0
"""Interval at which the first scan of a large library shows its progress."""

_Result = TypeVar("_Result")

_Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last changes in ns: the same signature means the same content."""


@dataclasses.dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of the folder.

    Attributes:
        path: path of the file.
        found: the image; None while the file isn't a usable one.
        problem: the fault of the file; empty for a good image, and for a file that is being written.
    """

    path: Path
    found: FoundImage | None
    problem: str


@dataclasses.dataclass(slots=True)
class _Known:
    """State of a file after the last scan."""

    signature: _Signature
    found: FoundImage | None
    failure: str
    """Reason for which it isn't an image, reported once it has settled."""
    transient: bool
    """The failure may go away without a change of the file."""
    since: float
    """Time at which this signature was first seen."""
    examined: float
    """Time of the last attempt to read the file."""
    settled: bool
    """The file isn't being written any more."""

    def as_file(self, path: Path) -> FolderFile:
        return FolderFile(path, self.found, self.failure if self.settled else "")


class FolderWatch:
    """A scanner of one folder. Not thread-safe: use it on the event loop.

    Attributes:
        folder: path of the folder.
        files: good and damaged images, by path; files that are being written are left out.
        problem: reason for which the folder can't be scanned, or not completely; None without a problem.
    """

    def __init__(self, folder: Path, *, on_change: Callable[[], None], settle_s: float = SETTLE_S) -> None:
        """Watch ``folder``; call ``on_change`` after every change of :attr:`files` or :attr:`problem`."""
        self.folder = folder
        self.files: dict[Path, FolderFile] = {}
        self.problem: Problem | None = None
        self._settle_s = settle_s
        self._on_change = on_change
        self._known: dict[Path, _Known] = {}
        self._lock = asyncio.Lock()
        self._published = 0.0

    async def watch(self, interval_s: float) -> None:
        """Scan every ``interval_s``, until cancelled."""
        while True:
            await self.scan()
            await asyncio.sleep(interval_s)

    async def scan(self) -> None:
        """Scan the folder once; raise nothing.

        Waits while the folder doesn't answer. Cancelling leaves at most one thread behind.
        """
        async with self._lock:
            try:
                signatures = await self._await_answer(functools.partial(_signatures, self.folder))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    self._known.clear()
                self._set_problem(
                    f"the image folder {printable(self.folder)} can't be read: {error.strerror}; create it, mount it, "
                    "or correct library.folders"
                )
                self._publish()
                return
            too_many = len(signatures) - FILES_MAX
            if too_many > 0:
                signatures = dict(sorted(signatures.items())[:FILES_MAX])
                self._set_problem(
                    f"the image folder {printable(self.folder)} has {too_many} files more than the limit of "
                    f"{FILES_MAX}: split it"
                )
            for path in self._known.keys() - signatures.keys():
                del self._known[path]
            for path, signature in signatures.items():
                await self._scan_file(path, signature)
            if too_many <= 0:
                self._clear_problem()
            self._publish()

    async def _scan_file(self, path: Path, signature: _Signature) -> None:
        known = self._known.get(path)
        now = time.monotonic()
        if known is not None and known.signature == signature:
            if known.found is not None:
                return
            known.settled = known.settled or now - known.since >= self._settle_s
            if not (known.transient and now - known.examined >= RETRY_S):
                return
        else:
            old = time.time() - signature[3] / 1e9 >= OLD_S
            self._known[path] = known = _Known(
                signature, None, "", transient=False, since=now, examined=now, settled=old
            )
        known.examined = now
        try:
            known.found, known.failure = await self._await_answer(functools.partial(examine, path)), ""
        except DiskcastError as error:
            known.failure = _with_fix(str(error))
            known.transient = not isinstance(error, ImageDamagedError | ImageFormatError)
        except OSError as error:  # the file or its server vanished after it was opened
            known.failure, known.transient = f"{printable(path)}: {error.strerror}", True
        if known.found is not None and now - self._published >= PUBLISH_S:
            self._publish()

    async def _await_answer(self, function: Callable[[], _Result]) -> _Result:
        """Return the result of ``function``; report a problem while the folder's server doesn't answer."""
        call = start_blocking_call(function, f"library {self.folder.name}")
        try:
            done, _ = await asyncio.wait({call}, timeout=ANSWER_S)
            if not done:
                self._set_problem(
                    f"the image folder {printable(self.folder)} doesn't answer: its last known images are shown; "
                    "check its file server or disk"
                )
                await asyncio.wait({call})
                self._clear_problem()
        finally:
            call.cancel()
        return call.result()

    def _publish(self) -> None:
        self._published = time.monotonic()
        files = {
            path: known.as_file(path)
            for path, known in self._known.items()
            if known.found is not None or (known.settled and known.failure)
        }
        if files != self.files:
            for path, file in files.items():
                if file.problem and file != self.files.get(path):
                    _log.warning("image_damaged", path=printable(path), problem=file.problem)
            self.files = files
            self._on_change()

    def _set_problem(self, text: str) -> None:
        if self.problem is None or self.problem.text != text:
            self.problem = Problem(ProblemKind.LIBRARY, text, datetime.now(UTC))
            _log.warning("image_folder_unreadable", problem=text)
            self._on_change()

    def _clear_problem(self) -> None:
        if self.problem is not None:
            self.problem = None
            self._on_change()


def _signatures(folder: Path) -> dict[Path, _Signature]:
    """Return the signatures of a folder's image files. Blocks.

    Raises:
        OSError: the folder can't be read.
    """
    signatures: dict[Path, _Signature] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                continue
            try:
                status = entry.stat()  # follows links to images
            except OSError:  # the file vanished, or is a broken link
                continue
            if stat.S_ISREG(status.st_mode):
                signatures[folder / entry.name] = (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
    return signatures


def _with_fix(text: str) -> str:
    return text if "copy it again" in text else f"{text}; replace the file, or remove it"
