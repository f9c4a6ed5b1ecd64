"""Run the encoder thread: take plans from the session and encode them into frames, ahead of the transmitter."""

from __future__ import annotations

from protocol.constants import DATA_HEADER_BYTES, PLAN_SYMBOLS_MAX
from protocol.model.session_records import CastParameters
from protocol.sending.transmission.frame_encoder import FrameEncoder
from sender.cast.network.datagram_output import super_datagram_frames
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.batches import BatchQueue, FrameBatch
from sender.cast.transmission.block_loader import BlockLoader

BATCH_S = 0.005
"""Duration of a batch. Short enough that repairs wait only some 15 ms for the batches before them; long enough that
Python's cost per batch is negligible."""
_BATCH_SYMBOLS_MIN = 4
"""At a few Mbit/s a batch takes longer than 5 ms rather than hold fewer datagrams."""


class Encoder:
    """The encoder of one cast; runs until the session or the queue is closed."""

    def __init__(
        self,
        parameters: CastParameters,
        locked_session: LockedSession,
        blocks: BlockLoader,
        queue: BatchQueue,
    ) -> None:
        """Encode the session's plans with stored bytes from ``blocks`` into ``queue``."""
        self._frames = FrameEncoder(parameters)
        self._frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._frames_per_call = super_datagram_frames(self._frame_bytes)
        self._locked_session = locked_session
        self._blocks = blocks
        self._queue = queue

    def run(self) -> None:
        """Encode until closed; the function of the thread.

        Raises:
            ImageDamagedError: a block of the image file has changed.
            StorageError: the image file can't be read.
        """
        while (plan := self._locked_session.wait_for_plan(self._symbols_max)) is not None:
            self._blocks.use_keys(plan.keys)
            for request in plan.digest_requests:
                digests = request.answer(self._blocks.load)
                with self._locked_session.update() as (session, _now):
                    session.send_digests(digests)
            if plan.symbol_count == 0:
                continue
            read_s_before = self._blocks.read_s
            frames = self._frames.encode(plan, self._blocks.load)
            if not self._queue.put(FrameBatch(plan, frames, self._blocks.read_s - read_s_before)):
                break

    def _symbols_max(self, rate_bytes_per_s: float) -> int:
        symbols = rate_bytes_per_s * BATCH_S / self._frame_bytes
        # Whole super-datagrams if the rate allows it: otherwise the last call of a batch would be short.
        unit = self._frames_per_call if symbols >= self._frames_per_call else _BATCH_SYMBOLS_MIN
        return max(unit, min(round(symbols / unit) * unit, PLAN_SYMBOLS_MAX // unit * unit))
