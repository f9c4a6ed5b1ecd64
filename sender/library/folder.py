"""A watched folder: which images its files are, looked at again and again.

Looking rather than being notified: a file server notifies nobody, and a look at a thousand names costs milliseconds.
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
"""Of one folder: what a library can show and a look can pay for; the others are named in a problem."""

SETTLE_S: Final = 10.0
"""A file that isn't a whole image and didn't change for so long isn't being written: it is damaged."""

OLD_S: Final = 60.0
"""A file last written so long ago isn't being written either, when it is first seen."""

RETRY_S: Final = 30.0
"""A file that couldn't be read at all (permissions, a failing disk) is tried again after this time."""

ANSWER_S: Final = 10.0
"""A folder that takes longer is reported; a call to it goes on, and no second one is started."""

PUBLISH_S: Final = 1.0
"""The first look at a large library shows what it has found so far, this often."""

_Result = TypeVar("_Result")

_Signature = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last change in ns: what is the same is the same file with the same bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of the folder.

    Attributes:
        found: None while it is no usable image.
        problem: what is wrong with it; empty for a good one, and for one that is being written.
    """

    path: Path
    found: FoundImage | None
    problem: str


@dataclasses.dataclass(slots=True)
class _Known:
    """What the last look found."""

    signature: _Signature
    found: FoundImage | None
    failure: str
    """Why it isn't an image, said or not yet."""
    retried: bool
    """Its failure may pass without a change of the file."""
    since: float
    """When it was first seen with this signature."""
    examined: float
    settled: bool

    def as_file(self, path: Path) -> FolderFile:
        return FolderFile(path, self.found, self.failure if self.settled else "")


class FolderWatch:
    """Looks at one folder; call from the event loop.

    Attributes:
        files: by path, good and damaged ones; files that are still being written are left out.
        problem: why the folder can't be looked at, or not in full.
    """

    def __init__(self, folder: Path, *, on_change: Callable[[], None], settle_s: float = SETTLE_S) -> None:
        """Watch ``folder``; ``on_change`` is called whenever :attr:`files` or :attr:`problem` is another."""
        self.folder = folder
        self.files: dict[Path, FolderFile] = {}
        self.problem: Problem | None = None
        self._settle_s = settle_s
        self._on_change = on_change
        self._known: dict[Path, _Known] = {}
        self._lock = asyncio.Lock()
        self._published = 0.0

    async def watch(self, interval_s: float) -> None:
        """Look every ``interval_s``, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(interval_s)

    async def look(self) -> None:
        """One look; raises nothing.

        Waits for as long as the folder doesn't answer. Cancelling leaves at most one thread behind.
        """
        async with self._lock:
            try:
                signatures = await self._answer(functools.partial(_signatures, self.folder))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    self._known.clear()
                self._set_problem(
                    f"the image folder {printable(self.folder)} can't be read: {error.strerror}; make it, mount it, or "
                    "correct library.folders"
                )
                self._publish()
                return
            too_many = len(signatures) - FILES_MAX
            if too_many > 0:
                signatures = dict(sorted(signatures.items())[:FILES_MAX])
                self._set_problem(
                    f"the image folder {printable(self.folder)} has {too_many} files more than the {FILES_MAX} that "
                    "are looked at: split it"
                )
            for path in self._known.keys() - signatures.keys():
                del self._known[path]
            for path, signature in signatures.items():
                await self._look_at(path, signature)
            if too_many <= 0:
                self._clear_problem()
            self._publish()

    async def _look_at(self, path: Path, signature: _Signature) -> None:
        known = self._known.get(path)
        now = time.monotonic()
        if known is not None and known.signature == signature:
            if known.found is not None:
                return
            known.settled = known.settled or now - known.since >= self._settle_s
            if not (known.retried and now - known.examined >= RETRY_S):
                return
        else:
            old = time.time() - signature[3] / 1e9 >= OLD_S
            self._known[path] = known = _Known(
                signature, None, "", retried=False, since=now, examined=now, settled=old
            )
        known.examined = now
        try:
            known.found, known.failure = await self._answer(functools.partial(examine, path)), ""
        except DiskcastError as error:
            known.failure = _with_mend(str(error))
            known.retried = not isinstance(error, ImageDamagedError | ImageFormatError)
        except OSError as error:  # it vanished, or its server did, after it was opened
            known.failure, known.retried = f"{printable(path)}: {error.strerror}", True
        if known.found is not None and now - self._published >= PUBLISH_S:
            self._publish()

    async def _answer(self, function: Callable[[], _Result]) -> _Result:
        """What ``function`` returns; a problem is shown while the folder's server doesn't answer."""
        call = start_blocking_call(function, f"library {self.folder.name}")
        try:
            done, _ = await asyncio.wait({call}, timeout=ANSWER_S)
            if not done:
                self._set_problem(
                    f"the image folder {printable(self.folder)} doesn't answer: its images are shown as they were; "
                    "check its file server or disk"
                )
                await asyncio.wait({call})
                self._clear_problem()
        finally:
            call.cancel()  # nobody waits for it any more, if it hasn't ended
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
    """The images' files of a folder; blocks.

    Raises:
        OSError: the folder can't be read.
    """
    signatures: dict[Path, _Signature] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                continue
            try:
                status = entry.stat()  # follows links: a link to an image is one
            except OSError:  # it vanished, or leads nowhere
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


def _with_mend(text: str) -> str:
    return text if "copy it again" in text else f"{text}; replace the file, or remove it"
