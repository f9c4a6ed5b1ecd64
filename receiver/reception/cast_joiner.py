"""Joining a cast's sender: at the start, after the sender's restart, and after another daemon's takeover."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Awaitable, Callable

import trio

from protocol.constants import DATA_HEADER_BYTES
from protocol.errors import (
    CastFailedError,
    CertificateError,
    JoinRefusedError,
    NoSenderError,
    SenderLostError,
    TrustError,
)
from protocol.model.session_records import CastId, JoinGrant, JoinRequest
from receiver.reception.cast_link import CastLink, DataPort
from receiver.reception.network.control_client import require_plausible_manifest, retry_until
from receiver.reception.options import CastReceiverOptions
from receiver.target.image import TargetImage


class CastJoiner:
    """Membership in one cast: the link to its current sender and the joined data socket.

    Attributes:
        link: the connections to the current sender.
        data: the joined data socket; None before the first join and after :meth:`close`.
    """

    def __init__(
        self,
        cast_id: CastId,
        image: TargetImage,
        *,
        image_id: bytes,
        link: CastLink,
        options: CastReceiverOptions,
        wait_for_takeover: Callable[[], Awaitable[CastLink]] | None,
    ) -> None:
        """Prepare; arguments as for :class:`receiver.reception.cast_receiver.CastReceiver`."""
        self.link = link
        self.data: DataPort | None = None
        self._cast_id = cast_id
        self._image_id = image_id
        self._image = image
        self._options = options
        self._wait_for_takeover = wait_for_takeover
        self._agent_id = secrets.token_hex(16)
        self._symbol_bytes = 0
        self._next_link: CastLink | None = None
        self._taken_over = trio.Event()
        self._joining = trio.CancelScope()

    @property
    def follows_takeovers(self) -> bool:
        """Return whether another daemon may take the cast over."""
        return self._wait_for_takeover is not None

    @property
    def takeover_pending(self) -> bool:
        """Return whether the cast has moved to a sender that isn't joined yet."""
        return self._next_link is not None

    async def follow_takeovers(self, on_takeover: Callable[[], None]) -> None:
        """Abandon joining the old sender, and call ``on_takeover``, as soon as the cast has moved; never returns."""
        assert self._wait_for_takeover is not None
        while True:
            self._next_link = await self._wait_for_takeover()
            self._taken_over.set()
            self._joining.cancel()
            on_takeover()

    async def join(self, timeout_s: float, *, symbol_bytes: int | None = None) -> JoinGrant:
        """Join the cast's sender, following takeovers.

        Args:
            timeout_s: time allowed for each sender.
            symbol_bytes: the cast's symbol size, as announced; None to request it.

        Raises:
            NoSenderError: the sender can't be reached.
            JoinRefusedError: the sender refuses this receiver.
            CertificateError: another program answers; it got nothing.
            CastFailedError: the sender casts another image than the accepted one.
            TrustError: its answer names another image than its description.
        """
        while True:
            if self._switch_link():
                symbol_bytes = None
            deadline = trio.current_time() + timeout_s
            try:
                with trio.CancelScope() as self._joining:
                    if symbol_bytes is None:
                        symbol_bytes = await self._request_symbol_bytes(deadline)
                    return await self._request_join(symbol_bytes, deadline)
            except (NoSenderError, JoinRefusedError, CertificateError):
                if self._wait_for_takeover is None:
                    raise
                # Another daemon may be taking the cast over at this moment, or this one has a new certificate.
                with trio.move_on_at(deadline):
                    await self._taken_over.wait()
                if self._next_link is None:
                    raise

    async def rejoin(self) -> JoinGrant:
        """Join the sender's new run.

        ANNOUNCE isn't authenticated, so a restart that it announces counts only once the control API confirms it.

        Raises:
            SenderLostError: the sender can't be reached.
            JoinRefusedError, CastFailedError, TrustError: as :meth:`join`.
        """
        try:
            return await self.join(self._options.sender_timeout_s)
        except NoSenderError as error:
            raise SenderLostError(
                f"the sender was restarted but can't be joined: {error}; the target is incomplete"
            ) from error

    def close(self) -> None:
        """Leave the group."""
        # First None, then closed: a metrics thread may be reading the socket's queue.
        data, self.data = self.data, None
        if data is not None:
            data.close()

    def _switch_link(self) -> bool:
        """Use the link of the last takeover; return False if there was none."""
        if self._next_link is None:
            return False
        self.link, self._next_link = self._next_link, None
        self._taken_over = trio.Event()
        self.close()
        return True

    async def _request_symbol_bytes(self, deadline: float) -> int:
        cast = await retry_until(deadline, functools.partial(self.link.control.cast, self._cast_id))
        if cast.image_id != self._image_id:
            raise CastFailedError(
                f"the cast was restarted with another image, {cast.image_name!r}; the target is incomplete: "
                "run this command again to receive that image"
            )
        return cast.symbol_bytes

    async def _request_join(self, symbol_bytes: int, deadline: float) -> JoinGrant:
        self._open_data(symbol_bytes)
        request = JoinRequest(
            agent_id=self._agent_id,
            name=self._options.name,
            inventory=dict(self._options.inventory),
            has_manifest=self._image.manifest is not None,
            need=self._image.need.copy() if self._image.manifest is not None else None,
            address="",
            identity=self._options.identity,
        )
        join = functools.partial(self.link.control.join, self._cast_id, request)
        grant = await retry_until(deadline, join)
        parameters = grant.parameters
        if parameters.image_id != self._image_id:
            raise TrustError(
                f"the sender described the image {self._image_id.hex()}, but its answer to the join names "
                f"{parameters.image_id.hex()}: find out who runs that sender"
            )
        if parameters.symbol_bytes != self._symbol_bytes:
            raise CastFailedError(
                f"the cast's symbol size changed from {self._symbol_bytes} to {parameters.symbol_bytes} bytes: "
                "run this command again"
            )
        if parameters.raw_bytes != self._image.raw_bytes:
            raise CastFailedError(
                "the size of the cast's image changed while this machine joined: run this command again"
            )
        require_plausible_manifest(parameters.raw_bytes, parameters.block_bytes, parameters.manifest_bytes)
        return grant

    def _open_data(self, symbol_bytes: int) -> None:
        """Join the group before the request to the sender, so that nothing that follows its answer is missed."""
        if self.data is not None:
            if symbol_bytes == self._symbol_bytes:
                return
            self.data.close()
        self.data = self.link.open_data(DATA_HEADER_BYTES + symbol_bytes)
        self._symbol_bytes = symbol_bytes
