"""The desk for requests of machines to be imaged: a technician asks at a console, an operator decides.

An approved request becomes an ordinary cast for that one machine, planned in the operator's name. The machine itself
can only ask: its secret neither starts casts nor reads anything but the list of images.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from protocol.control.image_requests import (
    IMAGES_OFFERED_MAX,
    ImageChoice,
    LibraryImage,
    LibraryImages,
    RequestState,
    RequestStatus,
)
from protocol.errors import DatabaseError
from protocol.model.session_records import CastId
from sender.actors import Actor
from sender.daemon.cast_commands import CastCommands
from sender.library.library import Library
from sender.refusals import RequestRefusedError, invalid, not_found
from sender.store.records.casts import Cast, CastPlan, StartMode
from sender.store.records.image_requests import ImageRequest
from sender.store.records.images import Image, ImageState
from sender.store.records.problems import Problem, ProblemKind
from sender.store.store import Store

_POLL_S: Final = 5.0
_NAMES_SHOWN_MAX: Final = 5
_CASTABLE: Final = frozenset({ImageState.AVAILABLE, ImageState.REMOTE, ImageState.FETCHING})
_ID_CHARACTERS: Final = 64
"""Length of the id of an image that was read; others have no manifest yet."""

_log = structlog.get_logger(__name__)


class ImageRequestDesk:
    """Requests of machines. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library, commands: CastCommands, *, encrypt: bool) -> None:
        """Decide requests.

        Args:
            store: has the requests.
            library: has the images.
            commands: plans the casts.
            encrypt: encrypt the casts' data.
        """
        self._store = store
        self._library = library
        self._commands = commands
        self._encrypt = encrypt
        self._waiting: list[ImageRequest] = []
        self._stale = asyncio.Event()

    def images(self) -> LibraryImages:
        """Return the images that a machine may request, by name."""
        images = [image for image in self._library.images() if _is_castable(image)]
        images.sort(key=lambda image: (image.name.casefold(), image.image_id))
        return LibraryImages(tuple(self._offer(image) for image in images[:IMAGES_OFFERED_MAX]))

    def _offer(self, image: Image) -> LibraryImage:
        try:
            signed = self._library.signature(image.image_id).signed
        except RequestRefusedError:  # it was replaced at this moment
            signed = None
        return LibraryImage(
            image_id=bytes.fromhex(image.image_id),
            name=image.name,
            raw_bytes=image.raw_bytes,
            statement="" if signed is None else signed.statement.decode("ascii"),
            signature="" if signed is None else signed.signature,
        )

    async def ask(self, machine_id: str, choice: ImageChoice, address: str) -> RequestStatus:
        """Record the request of a machine.

        Raises:
            RequestRefusedError: there is no such image, or the machine was removed.
            ConflictError: too many requests.
            DatabaseError: the database is unavailable.
        """
        image = self._library.get(choice.image_id.hex())
        if image is None or not _is_castable(image):
            raise invalid(f"image_id: the library has no image {choice.image_id.hex()} that can be cast")
        request: ImageRequest | None = await self._store.run(
            self._store.image_requests.ask,
            machine_id,
            image_id=image.image_id,
            image_name=image.name,
            disk=choice.disk,
            address=address,
        )
        if request is None:
            raise not_found("machine", machine_id)
        self._stale.set()
        _log.info("image_requested", machine=request.machine_name, image=image.name, address=address)
        return _status(request)

    async def status(self, machine_id: str, code: str) -> RequestStatus:
        """Return the state of a machine's request.

        Raises:
            RequestRefusedError: the machine has no request.
            DatabaseError: the database is unavailable.
        """
        request = await self._store.run(self._store.image_requests.get, machine_id)
        if request is None:
            raise not_found("request", code)
        if request.code != code:  # a later request replaced it
            return RequestStatus(code, RequestState.EXPIRED, None, "")
        return _status(request)

    async def waiting(self) -> list[ImageRequest]:
        """Return the requests that wait for a decision, the oldest first.

        Raises:
            DatabaseError: the database is unavailable.
        """
        found: list[ImageRequest] = await self._store.run(self._store.image_requests.waiting)
        return found

    async def approve(self, machine_id: str, code: str, actor: Actor) -> Cast:
        """Approve the request that shows ``code``, and plan its cast.

        Raises:
            RequestRefusedError: the machine has no request, or the cast can't be planned; the request waits on.
            ConflictError: the request was decided, has expired, or has another code.
            DatabaseError: the database is unavailable.
        """
        request = await self._decide(machine_id, code, RequestState.APPROVED, actor)
        settle = self._store.image_requests.settle
        plan = CastPlan(
            image_id=request.image_id,
            room_id=None,
            machine_ids=(machine_id,),
            name=f"request of {request.machine_name}"[:64],
            start=StartMode.JOINED,
            wait_for=1,
            encrypt=self._encrypt,
        )
        try:
            cast = await self._commands.create(plan, actor)
        except (RequestRefusedError, DatabaseError):
            with contextlib.suppress(DatabaseError):
                await self._store.run(settle, machine_id, request.code, "")
            raise
        await self._store.run(settle, machine_id, request.code, cast.cast_id)
        return cast

    async def decline(self, machine_id: str, code: str, actor: Actor) -> ImageRequest:
        """Decline the request that shows ``code``; raises as :meth:`approve` does."""
        return await self._decide(machine_id, code, RequestState.DECLINED, actor)

    async def _decide(self, machine_id: str, code: str, state: RequestState, actor: Actor) -> ImageRequest:
        decide = self._store.image_requests.decide
        request: ImageRequest | None = await self._store.run(
            decide, machine_id, code, state, audit=actor.note()
        )
        if request is None:
            raise not_found("request of the machine", machine_id)
        self._stale.set()
        _log.info("image_request_decided", machine=request.machine_name, state=state.value, by=actor.name)
        return request

    def problems(self) -> list[Problem]:
        """Return one entry for the requests that wait, as of the last few seconds; none without any."""
        if not self._waiting:
            return []
        names = ", ".join(request.machine_name for request in self._waiting[:_NAMES_SHOWN_MAX])
        more_count = len(self._waiting) - _NAMES_SHOWN_MAX
        more = f" and {more_count} more" if more_count > 0 else ""
        text = (
            f"an image was requested at the console of {names}{more}: compare the codes on their screens, then approve "
            "or decline on the page of all machines"
        )
        return [Problem(ProblemKind.REQUEST, text, self._waiting[0].asked_at)]

    async def run(self) -> None:
        """Keep the list of waiting requests current until cancelled."""
        while True:
            self._stale.clear()
            with contextlib.suppress(DatabaseError):  # the store shows that as a problem
                self._waiting = await self.waiting()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._stale.wait()


def _is_castable(image: Image) -> bool:
    return image.state in _CASTABLE and len(image.image_id) == _ID_CHARACTERS and image.raw_bytes > 0


def _status(request: ImageRequest) -> RequestStatus:
    cast_id = CastId(int(request.cast_id, 16)) if request.cast_id else None
    return RequestStatus(request.code, request.state, cast_id, request.decided_by)
