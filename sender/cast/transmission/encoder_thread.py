"""The encoder thread: asks the session what to send next, turns plans into frames, one batch ahead of the wire."""

from __future__ import annotations

from protocol.constants import DATA_HEADER_BYTES, PLAN_SYMBOLS_MAX
from protocol.model.session_records import CastParameters
from protocol.sending.frame_encoder import FrameEncoder
from sender.cast.network.datagram_output import super_datagram_frames
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.batches import BatchQueue, FrameBatch
from sender.cast.transmission.block_loader import BlockLoader

BATCH_S = 0.005
"""A batch holds about this much time's worth of data: repairs wait at most for the batches before them, some 15 ms, and
a batch is still so large that what Python does for each doesn't count."""
_BATCH_SYMBOLS_MIN = 4
"""At a few Mbit/s a batch is rather longer than 5 ms than a single datagram."""


class Encoder:
    """Encodes plans until the session or the queue is closed."""

    def __init__(
        self, parameters: CastParameters, shared: LockedSession, blocks: BlockLoader, queue: BatchQueue
    ) -> None:
        """Put into ``queue`` what ``shared`` plans, with the stored bytes from ``blocks``."""
        self._frames = FrameEncoder(parameters)
        self._frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._frames_per_call = super_datagram_frames(self._frame_bytes)
        self._shared = shared
        self._blocks = blocks
        self._queue = queue

    def run(self) -> None:
        """The thread's function.

        Raises:
            ImageDamagedError: a block of the image file has changed.
            StorageError: the image file can't be read.
        """
        while (plan := self._shared.wait_for_plan(self._symbols_max)) is not None:
            read_s_before = self._blocks.read_s
            frames = self._frames.encode(plan, self._blocks.load)
            if not self._queue.put(FrameBatch(plan, frames, self._blocks.read_s - read_s_before)):
                break

    def _symbols_max(self, rate_bytes_per_s: float) -> int:
        symbols = rate_bytes_per_s * BATCH_S / self._frame_bytes
        # Whole super-datagrams where the rate allows: the last call of a batch would be short otherwise.
        unit = self._frames_per_call if symbols >= self._frames_per_call else _BATCH_SYMBOLS_MIN
        return max(unit, min(round(symbols / unit) * unit, PLAN_SYMBOLS_MAX // unit * unit))
