"""The sender of a joined cast: feedback to it, and calls of its control API that are retried."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.constants import ANNOUNCE_INTERVAL_S
from protocol.errors import NoSenderError, ProtocolError, SessionError
from protocol.image.stored_manifest import StoredManifest
from protocol.model.cast_state import CastState
from protocol.model.session_records import CompletionReport, JoinGrant
from receiver.reception.cast_link import CastLink
from receiver.reception.manifest_store import manifest_store
from receiver.reception.network.control_client import retry_until
from receiver.reception.network.http_client import Unreachable

SILENCE_INTERVAL_S: Final = 3 * ANNOUNCE_INTERVAL_S
"""Interval at which the session reports a silent sender."""


class JoinedSender:
    """The sender that granted one join."""

    def __init__(self, link: CastLink, grant: JoinGrant, *, timeout_s: float) -> None:
        """Args:
        link: the connections to the sender.
        grant: the grant of the join.
        timeout_s: time to retry calls of the control API.
        """
        self._link = link
        self._grant = grant
        self._timeout_s = timeout_s

    def send_feedback(self, datagram: bytes) -> None:
        """Unicast a datagram; never waits, never raises."""
        self._link.send_feedback(self._grant.parameters, datagram)

    async def fetch_manifest(self) -> memoryview | StoredManifest:
        """Fetch the manifest over the control API."""
        parameters = self._grant.parameters
        store = manifest_store(parameters.manifest_bytes)
        fetch = functools.partial(self._link.control.manifest, parameters.cast_id, store)
        await retry_until(trio.current_time() + self._timeout_s, fetch)
        return await trio.to_thread.run_sync(store.collected)

    async def fetch_block(self, block: int, cast_bytes: int) -> memoryview | None:
        """Fetch an image block, as cast, over the control API, however long the sender limits it.

        Args:
            block: number of the block.
            cast_bytes: its length.

        Returns:
            The block; None if the sender refuses it.
        """
        fetch = functools.partial(self._link.control.block, self._grant, block, cast_bytes)
        while True:
            try:
                return await retry_until(trio.current_time() + self._timeout_s, fetch)
            except NoSenderError:
                continue  # a sender that stays silent ends the reception elsewhere
            except (SessionError, ProtocolError):
                # A sender that has just restarted doesn't know this receiver; its ANNOUNCE ends this wait.
                await trio.sleep(SILENCE_INTERVAL_S)
                return None

    async def fetch_patch(self, *, with_set: bool) -> tuple[bytes, bytes | None]:
        """Fetch this machine's patch, and the signed set of the room's patches if ``with_set``; both unchecked."""
        control = self._link.control
        deadline = trio.current_time() + self._timeout_s
        data = await retry_until(deadline, functools.partial(control.patch, self._grant))
        if not with_set:
            return data, None
        signed_set = await retry_until(deadline, functools.partial(control.patch_set, self._grant))
        return data, signed_set or None

    async def report_need(self, need: NDArray[np.bool_], heard_sequence: int | None) -> None:
        """Report the missing blocks known so far.

        Args:
            need: ``bool[block_count]``.
            heard_sequence: number after the last datagram that was taken into account; None if none was heard.
        """
        set_need = functools.partial(self._link.control.set_need, self._grant, need, heard_sequence)
        await retry_until(trio.current_time() + self._timeout_s, set_need)

    async def has_restarted(self) -> bool:
        """Ask the control API once for another run of the cast; return False without an answer."""
        parameters = self._grant.parameters
        try:
            cast = await self._link.control.cast(parameters.cast_id)
        except (Unreachable, SessionError, ProtocolError):
            return False
        return cast.incarnation != parameters.incarnation and cast.state is not CastState.ENDED

    async def report_completion(self, report: CompletionReport, timeout_s: float) -> bool:
        """Report completion; return whether the sender accepted it. The target is valid either way."""
        complete = functools.partial(self._link.control.complete, self._grant, report)
        with trio.move_on_after(timeout_s):
            try:
                await retry_until(trio.current_time() + timeout_s, complete)
            except (SessionError, ProtocolError):
                return False
            return True
        return False
