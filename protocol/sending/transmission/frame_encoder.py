"""Encoding of plans into frames: headers as columns, source symbols by slice copies, repair symbols by FEC."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES, PLAN_SYMBOLS_MAX
from protocol.fec.reed_solomon import encode_repair
from protocol.model.session_records import CastParameters
from protocol.sending.transmission.send_plan import LoadBlock, SendPlan
from protocol.wire.batch import fill_constant_headers, header_view, header_words
from protocol.wire.data_tags import DataTagger


class FrameEncoder:
    """Encoder of one plan after the other into a small ring of reused buffers.

    A returned array stays valid until ``ring_size - 1`` further plans are encoded.
    """

    def __init__(self, parameters: CastParameters, *, ring_size: int = 4) -> None:
        frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._ring = [np.zeros((PLAN_SYMBOLS_MAX, frame_bytes), np.uint8) for _ in range(ring_size)]
        for frames in self._ring:
            fill_constant_headers(frames, cast_id=parameters.cast_id)
        self._turn = 0
        self._tag_key = b""
        self._tagger: DataTagger | None = None

    def encode(self, plan: SendPlan, load_block: LoadBlock) -> NDArray[np.uint8]:
        """Return the plan's frames, ``uint8[symbol_count, 32 + symbol_bytes]``, contiguous."""
        frames = self._ring[self._turn][: plan.symbol_count]
        self._turn = (self._turn + 1) % len(self._ring)
        self._fill_headers(frames, plan)
        row = 0
        for segment in plan.segments:
            count = int(segment["count"])
            k = int(segment["k"])
            esi = int(segment["esi"])
            source = load_block(int(segment["object"]), int(segment["block"]))
            payloads = frames[row : row + count, DATA_HEADER_BYTES:]
            source_count = max(0, min(count, k - esi))
            if source_count:
                payloads[:source_count] = source[esi : esi + source_count]
            if source_count < count:
                encode_repair(source, esi + source_count, payloads[source_count:])
            row += count
        return frames

    def _fill_headers(self, frames: NDArray[np.uint8], plan: SendPlan) -> None:
        headers = header_view(frames)
        counts = plan.segments["count"]
        for name in ("object", "flags", "pass_index", "lag", "block", "k"):
            headers[name] = np.repeat(plan.segments[name], counts)
        position = np.arange(plan.symbol_count, dtype=np.int64)
        starts = np.cumsum(counts, dtype=np.int64) - counts
        headers["esi"] = position + np.repeat(plan.segments["esi"].astype(np.int64) - starts, counts)
        sequences = position + plan.first_sequence
        headers["sequence"] = sequences & 0xFFFFFFFF
        header_words(frames)[:, 1] = self._tagger_of(plan).tag_words(sequences)

    def _tagger_of(self, plan: SendPlan) -> DataTagger:
        if self._tagger is None or plan.keys.data_tag != self._tag_key:
            self._tag_key = plan.keys.data_tag
            self._tagger = DataTagger(self._tag_key)
        return self._tagger
