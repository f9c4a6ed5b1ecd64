"""The desk for captures: an operator plans one, the agent of its machine makes it, and the image enters the library.

::

    planned ─► uploading ─► proving ─► complete
       └───────────┴───────────┴─────► failed, cancelled

A capture belongs to the daemon that planned it, whose library gets the image. The database has its state; the partial
file beside the image has its blocks. A daemon that restarts continues both.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

import structlog

from protocol.control.capture_messages import (
    CAPTURE_SECRET_PREFIX,
    CaptureAssignment,
    CaptureEnd,
    CaptureFailure,
    CapturePosition,
    CaptureResult,
    CaptureStart,
    SpanAnswer,
)
from protocol.errors import (
    ConfigurationError,
    DatabaseError,
    DiskcastError,
    ImageDamagedError,
    ProtocolError,
    StorageError,
)
from protocol.image.manifest_format import check_block_bytes, check_name
from sender.actors import Actor
from sender.daemon.captures.capture_planning import choose_base_image, choose_path, partial_path
from sender.daemon.captures.upload_opener import UploadOpener, find_committed_image
from sender.daemon.captures.upload_session import DiskChangedError, UploadSession
from sender.daemon.captures.upload_start import UploadStart
from sender.daemon.jobs.change_notifier import ChangeNotifier
from sender.library.library import Library
from sender.metrics.image_job_metrics import IMAGE_JOB_FAILURES, ImageJobKind
from sender.refusals import RequestRefusedError, conflict, not_found
from sender.store.machines.claims import secret_hash
from sender.store.records.captures import CAPTURE_TRANSITIONS, Capture, CapturePlan, CaptureState
from sender.store.records.image_entries import ImageOrigin, OriginKind
from sender.store.records.machines import Machine
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store

SECRET_BYTES: Final = 32
_LOAD_RETRY_S: Final = 2.0
_ENDED_KEPT: Final = 64
"""Ended captures that still answer their agents: a lost answer to the last request is repeated."""

_Result = TypeVar("_Result")

_log = structlog.get_logger(__name__)


class CaptureDesk:
    """The captures of this daemon. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        library: Library,
        opener: UploadOpener,
        changes: ChangeNotifier,
        folder: Path,
        owner: str,
        *,
        uploads_at_once: int,
    ) -> None:
        """Keep captures.

        Args:
            store: has their records.
            library: gets the images, and has the base images.
            opener: opens the uploads.
            changes: notified when a machine has something to do.
            folder: the library's folder for the images.
            owner: name of this daemon.
            uploads_at_once: limit of uploads; more agents wait for their turn.
        """
        self._store = store
        self._library = library
        self._opener = opener
        self._changes = changes
        self._folder = folder
        self._owner = owner
        self._uploads_at_once = uploads_at_once
        self._captures: dict[str, Capture] = {}
        self._secret_hashes: dict[str, str] = {}
        self._sessions: dict[str, UploadSession] = {}
        self._starts: dict[str, UploadStart] = {}
        self._loaded = False
        self._loaded_at = time.monotonic()

    async def run(self) -> None:
        """Continue the captures of the database, until cancelled; then close the partial files."""
        try:
            while not self._loaded:
                with contextlib.suppress(DatabaseError):  # the store shows that as a problem
                    for capture, hashed in await self._store.run(
                        self._store.captures.unfinished, self._owner
                    ):
                        self._captures.setdefault(capture.capture_id, capture)
                        self._secret_hashes.setdefault(capture.capture_id, hashed)
                    self._loaded = True
                    self._loaded_at = time.monotonic()
                    self._changes.notify()
                if not self._loaded:
                    await asyncio.sleep(_LOAD_RETRY_S)
            await asyncio.Event().wait()
        finally:
            for capture_id in list(self._sessions):
                with contextlib.suppress(DiskcastError):
                    await self._close(capture_id)
            self._opener.close()

    # -- operators --------------------------------------------------------------------------------------------

    async def create(self, plan: CapturePlan, machine: Machine, actor: Actor) -> Capture:
        """Plan a capture.

        Raises:
            ConfigurationError: the name or the block size can't be used.
            RequestRefusedError: the base image can't be used.
            ConflictError: the machine has an unfinished capture, or there are too many.
            DatabaseError: the database is unavailable.
        """
        check_name(plan.name)
        check_block_bytes(plan.block_bytes)
        plan = dataclasses.replace(plan, base_image_id=choose_base_image(self._library, plan))
        taken = {capture.location for capture in self._captures.values() if not capture.state.ended}
        path = await asyncio.to_thread(choose_path, self._folder, plan.name, taken)
        capture = Capture(
            capture_id=secrets.token_hex(4),
            plan=plan,
            machine_name=machine.name,
            owner=self._owner,
            location=str(path),
            state=CaptureState.PLANNED,
            created_at=self._store.now(),
            created_by=actor.name,
        )
        await self._store.run(self._store.captures.add, capture, audit=actor.note())
        self._captures[capture.capture_id] = capture
        _log.info(
            "capture_created",
            capture=capture.capture_id,
            machine=machine.name,
            image=plan.name,
            by=actor.name,
        )
        self._changes.notify()
        return capture

    async def find(self, capture_id: str) -> Capture | None:
        """Return a capture as it is now, or None."""
        if capture_id in self._captures:
            return self._now(self._captures[capture_id])
        found: Capture | None = await self._store.run(self._store.captures.get, capture_id)
        return found

    def current(self, captures: list[Capture]) -> list[Capture]:
        """Return recorded captures as they are now."""
        return [self._now(self._captures.get(capture.capture_id, capture)) for capture in captures]

    def of_machine(self, machine_id: str) -> Capture | None:
        """Return the unfinished capture of a machine, or None."""
        return next(
            (
                capture
                for capture in self._captures.values()
                if capture.plan.machine_id == machine_id and not capture.state.ended
            ),
            None,
        )

    def upload_of(self, machine_id: str) -> Capture | None:
        """Return the capture that a machine's agent is uploading or proving now, or None."""
        capture = self.of_machine(machine_id)
        session = None if capture is None else self._sessions.get(capture.capture_id)
        if capture is None or session is None or not session.has_uploader:
            return None
        now = self._now(capture)
        return dataclasses.replace(now, state=CaptureState.PROVING) if session.uploaded else now

    def active_states(self) -> Counter[str]:
        """Return the number of unfinished captures by state."""
        return Counter(capture.state.value for capture in self._captures.values() if not capture.state.ended)

    def silent_s(self) -> float:
        """Return the time without progress of the capture that is stuck for longest; 0 if none is being made."""
        silent = [0.0]
        for capture_id, capture in self._captures.items():
            if capture.state in (CaptureState.UPLOADING, CaptureState.PROVING):
                session = self._sessions.get(capture_id)
                since_start_s = time.monotonic() - self._loaded_at
                silent.append(since_start_s if session is None else session.progress.silent_s())
        return max(silent)

    async def cancel(self, capture_id: str, actor: Actor) -> Capture:
        """Cancel a capture, and remove its partial file.

        Raises:
            RequestRefusedError: there is none here, or it has ended.
            DatabaseError: the database is unavailable.
        """
        capture = self._captures.get(capture_id) or await self.find(capture_id)
        if capture is None:
            raise not_found("capture", capture_id)
        if capture.state.ended:
            raise conflict(f"capture {capture_id} is {capture.state} already")
        if capture.owner != self._owner:
            raise conflict(f"capture {capture_id} belongs to daemon {capture.owner}: cancel it there")
        return await self._end(capture_id, CaptureState.CANCELLED, "", actor.note())

    # -- agents -----------------------------------------------------------------------------------------------

    def assign(self, capture: Capture) -> CaptureAssignment:
        """Return the assignment of a capture, with a new secret: the one before is worthless from now on."""
        secret = CAPTURE_SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        self._secret_hashes[capture.capture_id] = secret_hash(secret)
        plan = capture.plan
        return CaptureAssignment(
            capture_id=capture.capture_id,
            name=plan.name,
            source=plan.source,
            block_bytes=plan.block_bytes,
            level=plan.level,
            every_byte=plan.every_byte,
            secret=secret,
        )

    def authenticate(self, capture_id: str, secret: str) -> bool:
        """Return whether ``secret`` is the one of this capture.

        Raises:
            RequestRefusedError: this daemon doesn't know its captures yet (503).
        """
        if not self._loaded:
            raise _busy("the daemon is starting: retry")
        expected = self._secret_hashes.get(capture_id, "")
        return bool(expected) and hmac.compare_digest(expected, secret_hash(secret))

    async def start(self, capture_id: str, message: CaptureStart) -> CapturePosition:
        """Start an upload, or continue it.

        Raises:
            ProtocolError: the start contradicts the plan.
            RequestRefusedError: another uploader is active (409), the capture has ended (410), or the agent has to wait
                (503).
            DatabaseError: the database is unavailable.
        """
        capture = self._live(capture_id)
        start = UploadStart.parse_untrusted(message.manifest_start, capture.plan)
        if capture.state is CaptureState.COMPLETE:
            return CapturePosition(start.geometry.block_count, start.geometry.block_count)
        session = self._sessions.get(capture_id)
        if session is not None and session.start != start.manifest_start:
            await self._close(capture_id)  # another disk: its partial file is emptied
            session = None
        if session is None and await self._was_committed(capture, start):
            return CapturePosition(start.geometry.block_count, start.geometry.block_count)
        if session is None:
            session = await self._opened(capture, start)
        hashed = self._secret_hashes[capture_id]
        position = await self._guarded(capture_id, session.attach(message.uploader, hashed))
        changed = dataclasses.replace(
            self._now(self._captures[capture_id]),
            state=CaptureState.UPLOADING,
            started_at=capture.started_at or self._store.now(),
            disk=message.disk,
            disk_model=message.model,
            disk_serial=message.serial,
            raw_bytes=start.geometry.raw_bytes,
        )
        await self._change(changed, hashed)
        _log.info(
            "capture_started", capture=capture_id, machine=capture.machine_name, block=position.next_block
        )
        return position

    async def take_spans(self, capture_id: str, read_body: Callable[[], Awaitable[bytes]]) -> SpanAnswer:
        """Read and take a batch of an upload; raises as :meth:`UploadSession.take_spans`, and 409 without an upload."""
        session = self._session(capture_id)
        async with session.receiving():
            return await self._guarded(capture_id, session.take_spans(await read_body()))

    async def take_proof(self, capture_id: str, body: bytes) -> CapturePosition:
        """Take a batch of the proof; raises as :meth:`UploadSession.take_proof`, and 409 without an upload."""
        session = self._session(capture_id)
        position = await self._guarded(capture_id, session.take_proof(body))
        capture = self._captures[capture_id]
        if capture.state is CaptureState.UPLOADING:
            self._captures[capture_id] = dataclasses.replace(capture, state=CaptureState.PROVING)
        return position

    async def commit(self, capture_id: str, message: CaptureEnd) -> CaptureResult:
        """Complete the image of a proven capture.

        Raises:
            RequestRefusedError: the disk isn't proven, or the capture has ended (409).
            DatabaseError: the database is unavailable; the agent repeats the request.
        """
        capture = self._live(capture_id)
        if capture.state is CaptureState.COMPLETE:
            return CaptureResult(bytes.fromhex(capture.image_id))
        session, start = self._session(capture_id), self._starts[capture_id]
        if bool(message.source_sha256) != capture.plan.every_byte:
            raise ProtocolError("source_sha256: it is for captures of every byte")
        final = start.with_digest(message.source_sha256) if message.source_sha256 else None
        image_id = await self._guarded(capture_id, session.commit(message.uploader, final))
        await self._complete(capture_id, image_id)
        return CaptureResult(image_id)

    async def fail(self, capture_id: str, message: CaptureFailure) -> None:
        """Record the reason for which the agent can't make the capture.

        Raises:
            RequestRefusedError: the capture has ended (409).
            DatabaseError: the database is unavailable.
        """
        capture = self._live(capture_id)
        if not capture.state.ended:
            await self._end(capture_id, CaptureState.FAILED, message.error, self._machine_note(capture))

    # -- details ----------------------------------------------------------------------------------------------

    def _live(self, capture_id: str) -> Capture:
        capture = self._captures.get(capture_id)
        if capture is None or (capture.state.ended and capture.state is not CaptureState.COMPLETE):
            state = "unknown here" if capture is None else f"{capture.state}: {capture.error}".rstrip(": ")
            raise _gone(f"capture {capture_id} is {state}")
        return capture

    def _session(self, capture_id: str) -> UploadSession:
        self._live(capture_id)
        session = self._sessions.get(capture_id)
        if session is None:
            raise conflict("the upload isn't started here: start again")
        return session

    async def _was_committed(self, capture: Capture, start: UploadStart) -> bool:
        """Complete a capture whose image got its final name just before a daemon ended; return False otherwise."""
        if capture.state is CaptureState.PLANNED:
            return False
        image_id = await asyncio.to_thread(find_committed_image, Path(capture.location), start)
        if image_id is None:
            return False
        await self._complete(capture.capture_id, image_id)
        return True

    async def _opened(self, capture: Capture, start: UploadStart) -> UploadSession:
        """Return a new session whose partial file was checked; refuse with 503 while that takes long."""
        capture_id = capture.capture_id
        running = self._sessions.keys() | self._opener.capture_ids
        if capture_id not in running and len(running) >= self._uploads_at_once:
            raise _busy(f"{self._uploads_at_once} uploads run already: wait for a turn")
        session = await self._guarded(capture_id, self._opener.open(capture, start))
        if session is None:
            raise _busy("the daemon checks the blocks that it has: retry")
        self._sessions[capture_id], self._starts[capture_id] = session, start
        return session

    async def _guarded(self, capture_id: str, step: Awaitable[_Result]) -> _Result:
        """Carry out a step; a fault that a retry can't fix ends the capture."""
        try:
            return await step
        except DiskChangedError as error:
            text = str(error)
        except (ConfigurationError, ImageDamagedError, StorageError) as error:
            text = str(error)
        capture = self._live(capture_id)
        await self._end(capture_id, CaptureState.FAILED, text, self._machine_note(capture))
        raise _gone(f"capture {capture_id} has failed: {text}")

    async def _complete(self, capture_id: str, image_id: bytes) -> None:
        capture = self._now(self._captures[capture_id])
        serial = f", serial {capture.disk_serial}" if capture.disk_serial else ""
        origin = ImageOrigin(
            OriginKind.CAPTURED,
            capture.machine_name,
            f"{capture.disk} {capture.disk_model}".rstrip() + serial,
        )
        await self._library.entries.enter(image_id.hex(), capture.plan.name, capture.created_by, origin)
        await self._end(
            capture_id,
            CaptureState.COMPLETE,
            "",
            self._machine_note(capture),
            image_id=image_id.hex(),
        )
        # The folder's watch would find the file within seconds; an operator who waits shouldn't.
        await self._library.scan()

    async def _end(
        self, capture_id: str, state: CaptureState, error: str, note: AuditNote, *, image_id: str = ""
    ) -> Capture:
        """Record the end of a capture, and close its files."""
        capture = self._now(self._captures[capture_id])
        assert state in CAPTURE_TRANSITIONS[capture.state], (capture.state, state)
        ended = dataclasses.replace(
            capture,
            state=state,
            error=error,
            ended_at=self._store.now(),
            image_id=image_id,
            rate_bytes_per_s=0,
            eta_s=None,
        )
        await self._store.run(self._store.captures.change, ended, audit=note)
        self._captures[capture_id] = ended
        self._opener.abandon(capture_id)
        if state is CaptureState.FAILED:
            IMAGE_JOB_FAILURES.labels(ImageJobKind.CAPTURE.value).inc()
        _log.info(
            "capture_ended", capture=capture_id, machine=capture.machine_name, state=state.value, error=error
        )
        await self._close(capture_id, discard=state is not CaptureState.COMPLETE)
        if state is not CaptureState.COMPLETE:
            partial = partial_path(Path(capture.location))
            await asyncio.to_thread(functools.partial(partial.unlink, missing_ok=True))
        self._forget_old()
        self._changes.notify()
        return ended

    def _forget_old(self) -> None:
        ended = [capture_id for capture_id, capture in self._captures.items() if capture.state.ended]
        for capture_id in ended[:-_ENDED_KEPT]:
            del self._captures[capture_id]
            self._secret_hashes.pop(capture_id, None)

    async def _close(self, capture_id: str, *, discard: bool = False) -> None:
        session = self._sessions.pop(capture_id, None)
        self._starts.pop(capture_id, None)
        if session is not None:
            await session.close(discard=discard)

    async def _change(self, capture: Capture, hashed: str) -> None:
        await self._store.run(self._store.captures.change, capture, secret_hash=hashed)
        self._captures[capture.capture_id] = capture

    def _now(self, capture: Capture) -> Capture:
        """Return a capture with the progress of its upload."""
        session = self._sessions.get(capture.capture_id)
        if session is None or capture.state.ended:
            return capture
        return dataclasses.replace(
            capture,
            done_bytes=session.done_bytes,
            uploaded_bytes=session.uploaded_bytes,
            kept_bytes=session.kept_bytes,
            rate_bytes_per_s=round(session.progress.rate_bytes_per_s()),
            eta_s=session.progress.eta_s(),
        )

    def _machine_note(self, capture: Capture) -> AuditNote:
        return AuditNote(f"machine {capture.machine_name}")


def _gone(text: str) -> RequestRefusedError:
    return RequestRefusedError(HTTPStatus.GONE, text)


def _busy(text: str) -> RequestRefusedError:
    return RequestRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, text)
