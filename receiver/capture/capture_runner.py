"""Captures beside the agent's event loop: one at a time, in a thread that ends with its task."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Final

import trio

from protocol.control.capture_messages import BATCHES_ON_THE_WAY, CaptureAssignment, CaptureFailure
from protocol.errors import CaptureFailedError, CaptureNotAllowedError
from protocol.program.peer_trust import PeerTrust
from receiver.capture.capture_disk import CapturedImage, CaptureProgress, CaptureStopped, DiskCapture
from receiver.capture.claimed_source import release_read_only
from receiver.capture.upload_client import OutOfStep, SecretReplaced, UploadClient
from receiver.reception.network.http_client import HttpPeer, Unreachable

_PROGRESS_S: Final = 1.0
_STOP_S: Final = 5.0
"""Time for the thread to give the disk back when the agent exits; a read of a failing disk may never end."""


class CaptureRunner:
    """A runner of captures."""

    def __init__(self, trust: PeerTrust, target: str, *, allowed: bool) -> None:
        """Args:
        trust: certificates of daemons that are accepted.
        target: the agent's own target, which ``auto`` means.
        allowed: make captures; otherwise each is refused, and its operator learns why.
        """
        self._trust = trust
        self._target = target
        self._allowed = allowed
        release_read_only()

    async def run(
        self, url: str, assignment: CaptureAssignment, on_progress: Callable[[CaptureProgress], None]
    ) -> CapturedImage:
        """Make a capture for the daemon at ``url``.

        Raises:
            CaptureStopped: another run of the agent has the capture.
            CaptureNotAllowedError: this agent makes no captures.
            CaptureFailedError: the capture was cancelled, or the daemon can't keep it.
            DiskcastError: this machine can't make it; the daemon knows the reason.
        """
        peer = HttpPeer(
            url,
            self._trust,
            server_kind="a diskcast daemon",
            example=url,
            loopback_http=True,
            connections=BATCHES_ON_THE_WAY,
        )
        client = UploadClient(peer, assignment)
        if not self._allowed:
            await self._refuse(client)
        forward = _Throttled(trio.lowlevel.current_trio_token(), on_progress)
        capture = DiskCapture(client, assignment, self._target, forward)
        async with trio.open_nursery() as nursery:
            # The thread isn't abandoned at once: it clears the read-only flag of the disk.
            shield = trio.CancelScope(shield=True)
            nursery.start_soon(_stop_when_cancelled, capture, shield)
            with shield:
                image = await trio.to_thread.run_sync(capture.run, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        if shield.cancelled_caught:
            raise CaptureStopped("the agent stops")
        return image

    async def _refuse(self, client: UploadClient) -> None:
        error = CaptureNotAllowedError(
            "this machine's agent makes no captures: start it with --allow-capture, or boot the live system over the "
            "network"
        )
        report = functools.partial(client.report_failure, CaptureFailure(str(error), error.exit_code))
        with contextlib.suppress(Unreachable, OutOfStep, SecretReplaced, CaptureFailedError):
            await trio.to_thread.run_sync(report, abandon_on_cancel=True)
        raise error


async def _stop_when_cancelled(capture: DiskCapture, shield: trio.CancelScope) -> None:
    try:
        await trio.sleep_forever()
    finally:
        capture.stop()
        shield.deadline = trio.current_time() + _STOP_S


class _Throttled:
    """A forwarder of progress from the thread to the event loop, at most once a second and at each new phase."""

    def __init__(
        self, token: trio.lowlevel.TrioToken, on_progress: Callable[[CaptureProgress], None]
    ) -> None:
        self._token = token
        self._on_progress = on_progress
        self._last: CaptureProgress | None = None
        self._at = 0.0

    def __call__(self, progress: CaptureProgress) -> None:
        now = time.monotonic()
        if self._last is None or progress.phase is not self._last.phase or now - self._at >= _PROGRESS_S:
            self._last, self._at = progress, now
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._on_progress, progress)
