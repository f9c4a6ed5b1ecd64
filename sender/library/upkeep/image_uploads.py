"""Uploads: files of clients that become images in the daemon's own folder, checked before they appear.

A client sends a file in parts, each at an offset, and so continues after a broken connection. No upload survives a
restart of the daemon: leftovers are removed when it starts.

::

    receiving ─► waiting ─┬─► checking ────────────► done
        │                 └─► unpacking ─► packing ──┘
        └─────────── from every state ─────────────► failed
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import re
import secrets
import shutil
import time
from collections import Counter
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from protocol.constants import IMAGE_BYTES_MAX
from protocol.errors import DiskcastError, StorageError
from protocol.shared.units import format_bytes
from sender.blocking_calls import start_blocking_call
from sender.imaging.foreign.sniff import SNIFFED_BYTES, ForeignFormat
from sender.imaging.partial_file import PRIVATE_FILE_MODE
from sender.job_progress import JobProgress
from sender.library.cache import DISK_RESERVE_BYTES
from sender.library.image_probe import SUFFIX, printable
from sender.library.library import Library
from sender.library.upkeep.received_file import NAME_CHARACTERS_MAX, CheckedImage, ReceivedFile
from sender.metrics.image_job_metrics import IMAGE_JOB_FAILURES, IMAGE_JOB_RECEIVED_BYTES, ImageJobKind
from sender.refusals import RequestRefusedError, conflict, invalid
from sender.store.records.image_uploads import ImageUpload, UploadState

if TYPE_CHECKING:
    from sender.actors import Actor
    from sender.store.store import Store

UPLOADS_MAX: Final = 4
"""Uploads at once: each holds a file of the size of a disk."""

PART_BYTES_MAX: Final = 4 << 20
"""Bytes of one part: at the deadline of a body, 30 s, a slow line of 1.2 Mbit/s still works."""

IDLE_S_MAX: Final = 3600.0
"""An upload without a new part for so long is removed."""

ENDED_KEPT_MAX: Final = 32
"""Ended uploads that clients can still ask about."""

_SWEEP_S: Final = 60.0
_PREFIX: Final = ".upload-"
_FILE: Final = "file"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Running:
    upload: ImageUpload
    """Without its progress: see :meth:`shown`."""
    file: ReceivedFile
    actor: Actor
    used_at: float
    progress: JobProgress
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    def shown(self) -> ImageUpload:
        """Return the upload with its progress."""
        return dataclasses.replace(
            self.upload,
            progress=self.progress.share,
            rate_bytes_per_s=round(self.progress.rate_bytes_per_s()),
            eta_s=self.progress.eta_s(),
        )

    def on_phase(self, state: UploadState, done_bytes: int, total_bytes: int) -> None:
        """Show the progress of the check or conversion; called in its thread."""
        if self.upload.state is not state:
            self.upload = dataclasses.replace(self.upload, state=state)
            self.progress.restart(total_bytes)
        self.progress.note(done_bytes, total_bytes)


class ImageUploads:
    """All uploads of this daemon. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library, *, allow_unsandboxed: bool = False) -> None:
        """Keep uploads.

        Args:
            store: has the audit.
            library: gets the images.
            allow_unsandboxed: convert images of other programs also where nothing confines their readers.
        """
        self._store = store
        self._library = library
        self._allow_unsandboxed = allow_unsandboxed
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, ImageUpload] = {}
        self._received: asyncio.Queue[str] = asyncio.Queue(UPLOADS_MAX)

    async def run(self) -> None:
        """Check received files one after the other, and remove idle uploads, until cancelled."""
        await self._remove_leftovers()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check_received())
            group.create_task(self._remove_idle())

    def uploads(self) -> list[ImageUpload]:
        """Return running and recently ended uploads, by the time of their start."""
        found = [*self._ended.values(), *(running.shown() for running in self._running.values())]
        return sorted(found, key=lambda upload: (upload.created_at, upload.upload_id))

    def active_states(self) -> Counter[str]:
        """Return the number of running uploads by state."""
        return Counter(running.upload.state.value for running in self._running.values())

    def get(self, upload_id: str) -> ImageUpload:
        """Return an upload.

        Raises:
            RequestRefusedError: there is none.
        """
        if (running := self._running.get(upload_id)) is not None:
            return running.shown()
        if (ended := self._ended.get(upload_id)) is not None:
            return ended
        raise RequestRefusedError(
            HTTPStatus.NOT_FOUND,
            f"there is no upload {upload_id!r}: the daemon was restarted, or the upload ended long ago; start again",
        )

    async def create(
        self,
        file_name: str,
        total_bytes: int,
        name: str | None,
        actor: Actor,
        kind: ForeignFormat | None = None,
    ) -> ImageUpload:
        """Start an upload.

        Args:
            file_name: name of the file on the client's machine.
            total_bytes: its size.
            name: name of the new image; None for the file's. An image of diskcast keeps its own.
            actor: the requester.
            kind: format of the file; None to detect it.

        Raises:
            RequestRefusedError: there are too many, the file is too large, or the disk too full.
        """
        folder = self._library.own_folder
        if folder is None:
            raise conflict(
                "the daemon has no folder of its own: add STATE_DIRECTORY/images to library.folders"
            )
        if len(self._running) >= UPLOADS_MAX:
            raise conflict(f"{UPLOADS_MAX} uploads are running already: wait for one, or remove it")
        if not 0 < total_bytes <= IMAGE_BYTES_MAX:
            raise invalid(f"total_bytes: from 1 to {IMAGE_BYTES_MAX}")
        upload_id = secrets.token_hex(8)
        upload = ImageUpload(
            upload_id=upload_id,
            file_name=file_name,
            state=UploadState.RECEIVING,
            total_bytes=total_bytes,
            received_bytes=0,
            progress=0.0,
            rate_bytes_per_s=0,
            eta_s=None,
            image_id="",
            problem="",
            exit_code=0,
            created_by=actor.name,
            created_at=datetime.now(UTC),
        )
        file = ReceivedFile(
            folder / f"{_PREFIX}{upload_id}" / _FILE,
            file_name,
            (name or Path(file_name).name.split(".")[0] or "image")[:NAME_CHARACTERS_MAX],
            kind,
            self._allow_unsandboxed,
        )
        running = _Running(upload, file, actor, time.monotonic(), JobProgress(total_bytes))
        self._running[upload_id] = running
        promised = sum(
            each.upload.total_bytes - each.upload.received_bytes for each in self._running.values()
        )
        try:
            await start_blocking_call(functools.partial(_create, file.path, promised), "upload")
        except (OSError, DiskcastError) as error:
            del self._running[upload_id]
            raise conflict(f"the upload can't be stored: {_reason(error)}") from error
        return running.shown()

    async def append(self, upload_id: str, offset: int, part: bytes) -> ImageUpload:
        """Store the part of a file that starts at ``offset``; a part that arrived already is ignored.

        Raises:
            RequestRefusedError: the upload doesn't exist or is complete, the part is beyond its end or leaves a gap, or
                the disk failed.
            DiskcastError: the file isn't a disk; the upload has failed.
        """
        running = self._running_of(upload_id)
        async with running.lock:
            upload = running.upload
            if upload.state is not UploadState.RECEIVING or upload_id not in self._running:
                raise conflict("the upload has all its bytes")
            if offset + len(part) <= upload.received_bytes:
                return running.shown()
            if offset != upload.received_bytes or offset + len(part) > upload.total_bytes:
                raise conflict(
                    f"the next part starts at {upload.received_bytes} and ends at {upload.total_bytes} at most"
                )
            try:
                await start_blocking_call(
                    functools.partial(_write, running.file.path, offset, part), "upload"
                )
                received_bytes = offset + len(part)
                if offset < SNIFFED_BYTES <= received_bytes:
                    await start_blocking_call(running.file.refuse_early, "upload")
            except OSError as error:
                await self._fail(running, error)
                raise conflict(f"the upload can't be stored: {_reason(error)}") from error
            except DiskcastError as error:
                await self._fail(running, error)
                raise
            running.used_at = time.monotonic()
            running.upload = upload = dataclasses.replace(upload, received_bytes=received_bytes)
            running.progress.note(received_bytes)
            IMAGE_JOB_RECEIVED_BYTES.labels(ImageJobKind.UPLOAD.value).inc(len(part))
            if upload.received_bytes == upload.total_bytes:
                running.upload = dataclasses.replace(upload, state=UploadState.WAITING)
                running.progress.restart(upload.total_bytes)
                self._received.put_nowait(upload_id)
            return running.shown()

    async def remove(self, upload_id: str) -> None:
        """Stop an upload and delete its file.

        Raises:
            RequestRefusedError: there is none, or its file is being checked.
        """
        if self._ended.pop(upload_id, None) is not None:
            return
        running = self._running_of(upload_id)
        async with running.lock:
            if running.upload.state is not UploadState.RECEIVING:
                raise conflict("the file is being checked: wait for the end")
            await self._end(running, UploadState.FAILED, problem="removed by an operator")
            self._ended.pop(upload_id, None)

    def _running_of(self, upload_id: str) -> _Running:
        running = self._running.get(upload_id)
        if running is None:
            raise conflict(f"the upload is {self.get(upload_id).state}")
        return running

    async def _check_received(self) -> None:
        while True:
            running = self._running[await self._received.get()]
            try:
                image_id = await self._accept(running)
            except (DiskcastError, OSError) as error:
                _log.warning("upload_refused", file=running.upload.file_name, reason=_reason(error))
                await self._fail(running, error)
            else:
                await self._end(running, UploadState.DONE, image_id=image_id)

    async def _accept(self, running: _Running) -> str:
        """Check a received file and put it into the library."""
        checked: CheckedImage = await start_blocking_call(
            functools.partial(running.file.check, running.on_phase), "upload"
        )
        image_id, name, path = checked.image_id, checked.name, checked.path
        known = self._library.get(image_id)
        if known is not None and self._library.path_of(image_id) is not None:
            raise conflict(f"the library has this image already: {known.location}")
        detail: dict[str, object] = {"name": name, "file": running.upload.file_name}
        add = self._store.audit.add
        actor = running.actor
        await self._store.run(add, actor.name, "image.import", f"image {image_id}", detail, actor.request_id)
        await self._library.entries.enter(image_id, name, actor.name)
        folder = running.file.path.parent.parent
        final = folder / f"{_UNSAFE.sub('-', name).strip('.-') or 'image'}-{image_id[:8]}{SUFFIX}"
        await start_blocking_call(functools.partial(path.rename, final), "upload")
        await self._library.scan()
        _log.info("image_imported", image_id=image_id, path=printable(final))
        return image_id

    async def _fail(self, running: _Running, error: DiskcastError | OSError) -> None:
        IMAGE_JOB_FAILURES.labels(ImageJobKind.UPLOAD.value).inc()
        code = error.exit_code if isinstance(error, DiskcastError) else StorageError.exit_code
        await self._end(running, UploadState.FAILED, problem=_reason(error), exit_code=code)

    async def _end(
        self,
        running: _Running,
        state: UploadState,
        *,
        image_id: str = "",
        problem: str = "",
        exit_code: int = 0,
    ) -> None:
        await start_blocking_call(functools.partial(_remove_folder, running.file.path.parent), "upload")
        upload = dataclasses.replace(
            running.upload,
            state=state,
            image_id=image_id,
            problem=problem,
            exit_code=exit_code,
            progress=1.0 if state is UploadState.DONE else running.progress.share,
        )
        self._running.pop(upload.upload_id, None)
        while len(self._ended) >= ENDED_KEPT_MAX:
            del self._ended[next(iter(self._ended))]
        self._ended[upload.upload_id] = upload

    async def _remove_idle(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for running in list(self._running.values()):
                idle = time.monotonic() - running.used_at > IDLE_S_MAX
                if idle and running.upload.state is UploadState.RECEIVING:
                    await self._end(running, UploadState.FAILED, problem="no part arrived for an hour")

    async def _remove_leftovers(self) -> None:
        folder = self._library.own_folder
        if folder is None:
            return

        def remove() -> None:
            for path in folder.glob(f"{_PREFIX}*"):
                _remove_folder(path)

        with contextlib.suppress(OSError):  # the folder's watch reports its errors
            await start_blocking_call(remove, "upload leftovers")


def _reason(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _create(path: Path, promised_bytes: int) -> None:
    folder = path.parent.parent
    free = shutil.disk_usage(folder).free - DISK_RESERVE_BYTES
    if promised_bytes > free:
        raise conflict(
            f"{printable(folder)} needs {format_bytes(promised_bytes)} and has {format_bytes(max(0, free))} free "
            "beside a reserve: delete something, or prune old images"
        )
    path.parent.mkdir(mode=0o750)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE_MODE))


def _write(path: Path, offset: int, part: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        view = memoryview(part)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count
    finally:
        os.close(fd)


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
