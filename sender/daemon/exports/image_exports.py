"""Exports: files of other formats that the daemon makes of its images, one after the other, for clients to download.

::

    waiting ─► converting ─► done
       └───────────┴───────► failed

The files are in a folder of the cache, within a limit. No export survives a restart of the daemon: leftovers are
removed when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import secrets
import shutil
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog

from protocol.errors import DiskcastError, StorageError
from protocol.shared.units import format_bytes
from sender.actors import Actor
from sender.blocking_calls import start_blocking_call
from sender.export.export_format import ExportFormat, check_disk_bytes
from sender.export.export_image import export_image
from sender.export.raw_export import stored_raw_bytes
from sender.imaging.image_file import ImageFile
from sender.job_progress import JobProgress
from sender.library.cache import DISK_RESERVE_BYTES
from sender.library.library import Library
from sender.metrics.image_job_metrics import IMAGE_JOB_FAILURES, ImageJobKind
from sender.refusals import RequestRefusedError, conflict, not_found
from sender.store.records.image_exports import ExportState, ImageExport
from sender.store.records.images import image_reference
from sender.store.store import Store

WAITING_MAX: Final = 8
"""Exports that are being made or wait: each takes minutes."""

KEPT_S: Final = 24 * 3600.0
"""Time for the download of a file, from its completion or the start of its last download."""

FAILED_KEPT_MAX: Final = 16
"""Failed exports that clients can still ask about."""

_SWEEP_S: Final = 60.0

_log = structlog.get_logger(__name__)


class _StoppedError(Exception):
    """An operator removed the export, or the daemon stops."""


@dataclasses.dataclass(slots=True)
class _Job:
    export: ImageExport
    """Without its progress: see :meth:`shown`."""
    kind: ExportFormat
    path: Path
    progress: JobProgress = dataclasses.field(default_factory=JobProgress)
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    used_at: float = 0.0

    def shown(self) -> ImageExport:
        """Return the export with its progress."""
        if self.export.state is not ExportState.CONVERTING:
            return self.export
        return dataclasses.replace(
            self.export,
            progress=self.progress.share,
            rate_bytes_per_s=round(self.progress.rate_bytes_per_s()),
            eta_s=self.progress.eta_s(),
        )

    def on_progress(self, done_bytes: int, total_bytes: int) -> None:
        """Show the progress; called in the thread of the conversion."""
        if self.stopped.is_set():
            raise _StoppedError
        self.progress.note(done_bytes, total_bytes)


class ImageExports:
    """All exports of this daemon. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library, directory: Path, limit_bytes: int) -> None:
        """Keep exports in ``directory``, whose files take ``limit_bytes`` at most."""
        self._store = store
        self._library = library
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._jobs: dict[str, _Job] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Make the exports, and remove old files, until cancelled."""
        await start_blocking_call(
            functools.partial(shutil.rmtree, self._directory, ignore_errors=True), "exports"
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._convert_waiting())
                group.create_task(self._remove_expired())
        finally:
            for job in self._jobs.values():
                job.stopped.set()

    def exports(self) -> list[ImageExport]:
        """Return all exports by the time of their start."""
        return sorted(
            (job.shown() for job in self._jobs.values()),
            key=lambda export: (export.created_at, export.export_id),
        )

    def active_states(self) -> Counter[str]:
        """Return the number of exports that wait or are being made, by state."""
        return Counter(job.export.state.value for job in self._jobs.values() if not job.export.state.ended)

    def get(self, export_id: str) -> ImageExport:
        """Return an export.

        Raises:
            RequestRefusedError: there is none.
        """
        return self._job(export_id).shown()

    async def create(self, image_id: str, kind: ExportFormat, actor: Actor) -> ImageExport:
        """Start an export, or return the one of the same image and format that exists.

        Raises:
            RequestRefusedError: there is no such image here, or too many exports wait.
            ConfigurationError: the disk is too large for the format.
            DatabaseError: it can't be recorded.
        """
        image = self._library.get(image_id)
        if image is None:
            raise not_found("image", image_id)
        if self._library.path_of(image_id) is None:
            raise conflict(f"{image.name} isn't on the daemon's disk: fetch it first")
        for job in self._jobs.values():
            same = (job.export.image_id, job.kind) == (image_id, kind)
            if same and job.export.state is not ExportState.FAILED:
                return job.shown()
        check_disk_bytes(kind, image.raw_bytes)
        if sum(not job.export.state.ended for job in self._jobs.values()) >= WAITING_MAX:
            raise conflict(f"{WAITING_MAX} exports are waiting already: wait for one, or remove it")
        export_id = secrets.token_hex(8)
        name = image_reference(image)
        export = ImageExport(
            export_id=export_id,
            image_id=image_id,
            image_name=name,
            format=kind.value,
            file_name=f"{name}.{kind}",
            state=ExportState.WAITING,
            progress=0.0,
            rate_bytes_per_s=0,
            eta_s=None,
            file_bytes=0,
            problem="",
            exit_code=0,
            created_by=actor.name,
            created_at=datetime.now(UTC),
        )
        job = _Job(export, kind, self._directory / f"{export_id}.{kind}")
        self._jobs[export_id] = job
        detail: dict[str, object] = {"name": name, "format": kind.value}
        add = self._store.audit.add
        with contextlib.ExitStack() as undo:
            undo.callback(self._jobs.pop, export_id, None)  # it may have been removed meanwhile
            await self._store.run(
                add, actor.name, "image.export", f"image {image_id}", detail, actor.request_id
            )
            undo.pop_all()
        self._waiting.put_nowait(export_id)
        return job.shown()

    async def remove(self, export_id: str) -> None:
        """Stop an export, and delete its file.

        Raises:
            RequestRefusedError: there is none.
        """
        job = self._job(export_id)
        del self._jobs[export_id]
        job.stopped.set()
        await start_blocking_call(functools.partial(_unlink, job.path), "exports")

    def file_of(self, export_id: str) -> tuple[ImageExport, Path]:
        """Return a complete export with its file, which stays for another day.

        Raises:
            RequestRefusedError: there is none, or it isn't complete.
        """
        job = self._job(export_id)
        if job.export.state is not ExportState.DONE:
            raise conflict(f"the export is {job.export.state}: wait until it is done")
        self._keep(job)
        return job.export, job.path

    def used_bytes(self) -> int:
        """Return the size of all complete files."""
        return sum(job.export.file_bytes for job in self._jobs.values())

    def _job(self, export_id: str) -> _Job:
        job = self._jobs.get(export_id)
        if job is None:
            raise RequestRefusedError(
                HTTPStatus.NOT_FOUND,
                f"there is no export {export_id!r}: it was removed, or the daemon was restarted; start again",
            )
        return job

    def _keep(self, job: _Job) -> None:
        job.used_at = time.monotonic()
        expires_at = datetime.now(UTC) + timedelta(seconds=KEPT_S)
        job.export = dataclasses.replace(job.export, expires_at=expires_at)

    async def _convert_waiting(self) -> None:
        while True:
            job = self._jobs.get(await self._waiting.get())
            if job is None:
                continue
            try:
                await self._convert(job)
            except _StoppedError:
                _log.info("export_stopped", image=job.export.image_name, format=job.kind.value)
            except (DiskcastError, OSError) as error:
                self._fail(job, error)

    async def _convert(self, job: _Job) -> None:
        path = self._library.path_of(job.export.image_id)
        if path is None:
            raise not_found("image", job.export.image_id)
        job.export = dataclasses.replace(job.export, state=ExportState.CONVERTING)
        needed_bytes = await start_blocking_call(functools.partial(_content_bytes, path), "export")
        await self._make_room(needed_bytes)
        file_bytes, digest = await start_blocking_call(functools.partial(_export, path, job), "export")
        if job.stopped.is_set():
            await start_blocking_call(functools.partial(_unlink, job.path), "exports")
            return
        job.export = dataclasses.replace(
            job.export,
            state=ExportState.DONE,
            progress=1.0,
            file_bytes=file_bytes,
            file_sha256=digest.hex(),
        )
        self._keep(job)
        _log.info("image_exported", image=job.export.image_name, format=job.kind.value, bytes=file_bytes)

    async def _make_room(self, needed_bytes: int) -> None:
        """Remove the oldest files until an export fits.

        Raises:
            StorageError: it doesn't fit.
        """
        if needed_bytes > self._limit_bytes:
            raise StorageError(
                f"the export needs up to {format_bytes(needed_bytes)}, and exports may take "
                f"{format_bytes(self._limit_bytes)}: raise library.exports_size, or download the .dci file and use "
                "`diskcast export`"
            )
        done = [job for job in self._jobs.values() if job.export.state is ExportState.DONE]
        for job in sorted(done, key=lambda each: each.used_at):
            free_bytes = await start_blocking_call(self._free_bytes, "export")
            if self.used_bytes() + needed_bytes <= self._limit_bytes and needed_bytes <= free_bytes:
                return
            with contextlib.suppress(RequestRefusedError):
                await self.remove(job.export.export_id)
        free_bytes = await start_blocking_call(self._free_bytes, "export")
        if needed_bytes > free_bytes:
            raise StorageError(
                f"{self._directory} has {format_bytes(max(0, free_bytes))} free beside a reserve, and the export needs "
                f"up to {format_bytes(needed_bytes)}: free some space, or prune old images"
            )

    def _free_bytes(self) -> int:
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        return shutil.disk_usage(self._directory).free - DISK_RESERVE_BYTES

    def _fail(self, job: _Job, error: DiskcastError | OSError) -> None:
        if isinstance(error, DiskcastError):
            text, exit_code = str(error), error.exit_code
        else:
            text, exit_code = error.strerror or str(error), StorageError.exit_code
        text = text.replace(str(job.path), job.export.file_name)
        _log.warning("export_failed", image=job.export.image_name, format=job.kind.value, reason=text)
        IMAGE_JOB_FAILURES.labels(ImageJobKind.EXPORT.value).inc()
        job.export = dataclasses.replace(
            job.export,
            state=ExportState.FAILED,
            progress=job.progress.share,
            problem=text,
            exit_code=exit_code,
        )
        failed = [key for key, each in self._jobs.items() if each.export.state is ExportState.FAILED]
        for key in failed[:-FAILED_KEPT_MAX]:
            del self._jobs[key]

    async def _remove_expired(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for export_id, job in list(self._jobs.items()):
                if job.export.state is ExportState.DONE and now - job.used_at > KEPT_S:
                    with contextlib.suppress(RequestRefusedError):
                        await self.remove(export_id)


def _content_bytes(path: Path) -> int:
    with ImageFile.open(path) as image:
        return stored_raw_bytes(image)


def _export(path: Path, job: _Job) -> tuple[int, bytes]:
    """Return the size of the file and its SHA-256, by which a client checks its download."""
    with ImageFile.open(path) as image:
        file_bytes = export_image(image, job.path, job.kind, on_progress=job.on_progress).file_bytes
    with job.path.open("rb") as file:
        return file_bytes, hashlib.file_digest(file, "sha256").digest()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
