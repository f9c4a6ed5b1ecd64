"""Batches of SYMBOL datagrams as numpy arrays: no Python object per datagram.

A batch is ``frames``, a ``uint8`` array of shape ``[n, 32 + symbol_bytes]``; its header columns are a structured
view of the first 32 bytes of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES, WIRE_MAGIC, WIRE_VERSION
from protocol.schema.binary_fields import UInt
from protocol.wire.data_tags import DataTagger, SequenceWindow
from protocol.wire.messages import SymbolHeader

HEADER_DTYPE: Final = np.dtype(
    [
        (field.name, f">u{field.kind.bits // 8}" if field.kind.bits > 8 else "u1")
        for field in SymbolHeader.FIELDS
        if isinstance(field.kind, UInt)
    ]
)
assert HEADER_DTYPE.itemsize == DATA_HEADER_BYTES


def header_view(frames: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return the headers of ``frames`` as a structured view of shape ``[n]``, without a copy.

    Args:
        frames: ``uint8[n, at least 32]``, rows contiguous.
    """
    return np.ndarray(
        shape=(frames.shape[0],), dtype=HEADER_DTYPE, buffer=frames.data, strides=(frames.strides[0],)
    )


def header_words(frames: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the headers as a view ``u8[n, 4]`` in memory order; first the constant fields, then the tag.

    Comparing words needs no conversion of the byte order, which takes longer than the comparison.
    """
    return np.ndarray(
        (frames.shape[0], DATA_HEADER_BYTES // 8),
        np.uint64,
        buffer=frames.data,
        strides=(frames.strides[0], 8),
    )


def fill_constant_headers(frames: NDArray[np.uint8], *, cast_id: int) -> None:
    """Write the columns that never change during a cast, once for each reused buffer of the sender."""
    headers = header_view(frames)
    headers["magic"] = WIRE_MAGIC
    headers["version"] = WIRE_VERSION
    headers["type"] = SymbolHeader.WIRE_TYPE
    headers["cast_id"] = cast_id


class HeaderFilter:
    """Filter that splits a batch of received frames into those of a run, each once, and rejected ones."""

    def __init__(self, *, cast_id: int, tag_key: bytes, next_sequence: int) -> None:
        """Args:
        cast_id: the cast.
        tag_key: key of the run's data tags.
        next_sequence: extended number of the first datagram to accept.
        """
        constant = np.zeros(1, HEADER_DTYPE)
        constant["magic"] = WIRE_MAGIC
        constant["version"] = WIRE_VERSION
        constant["type"] = SymbolHeader.WIRE_TYPE
        constant["cast_id"] = cast_id
        # One 8-byte word holds all constant fields: one comparison per row instead of four.
        self._first_word = constant.view(np.uint64)[0]
        self._cast_id = cast_id
        self._tagger = DataTagger(tag_key)
        self._window = SequenceWindow(next_sequence)

    def note_signed(self, next_sequence: int) -> None:
        """Extend numbers around the extended ``next_sequence``, which the sender has signed."""
        self._window.anchor = next_sequence

    def accept_untrusted(self, frames: NDArray[np.uint8], rejects: dict[str, int]) -> NDArray[np.bool_]:
        """Return the rows that are authentic, new and have their fields in range; count the others.

        Args:
            frames: ``uint8[n, 32 + symbol_bytes]``.
            rejects: counts by reason, added to.

        Returns:
            ``bool[n]``.
        """
        words = header_words(frames)
        headers = header_view(frames)
        sequences = self._window.extend(headers["sequence"])
        ours = words[:, 0] == self._first_word
        authentic = ours & (words[:, 1] == self._tagger.tag_words(sequences))
        accepted: NDArray[np.bool_] = authentic & self._in_range(headers, words)
        all_accepted = bool(accepted.all())
        fresh = self._window.accept(sequences if all_accepted else sequences[accepted])
        if all_accepted and fresh.all():
            return accepted
        in_range = accepted.copy()
        accepted[in_range] = fresh
        self._count_rejects(headers, ours, authentic, in_range, accepted, rejects)
        return accepted

    @staticmethod
    def _in_range(headers: NDArray[np.void], words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        in_range: NDArray[np.bool_] = ((words[:, 2] & _FORBIDDEN[2]) | (words[:, 3] & _FORBIDDEN[3])) == 0
        for name, kind in _COMPARED_FIELDS:
            # Numbers below ``low`` wrap around to large ones.
            in_range &= headers[name] - np.uint8(kind.low) <= kind.high - kind.low
        return in_range

    def _count_rejects(
        self,
        headers: NDArray[np.void],
        ours: NDArray[np.bool_],
        authentic: NDArray[np.bool_],
        in_range: NDArray[np.bool_],
        accepted: NDArray[np.bool_],
        rejects: dict[str, int],
    ) -> None:
        remaining = ~accepted
        tests = (
            ("bad_magic", headers["magic"] != WIRE_MAGIC),
            ("bad_version", headers["version"] != WIRE_VERSION),
            ("bad_type", headers["type"] != SymbolHeader.WIRE_TYPE),
            ("foreign_cast", ~ours),
            ("bad_tag", ~authentic),
            ("bad_field", ~in_range),
            ("replayed", remaining),
        )
        for reason, test in tests:
            hit = remaining & test
            count = int(np.count_nonzero(hit))
            if count:
                rejects[reason] = rejects.get(reason, 0) + count
                remaining = remaining & ~hit


_RANGED_FIELDS = tuple(
    (field.name, field.kind)
    for field in SymbolHeader.FIELDS
    if isinstance(field.kind, UInt) and field.name in {"object", "flags", "block", "k", "esi"}
)


def _has_free_bits(kind: UInt) -> bool:
    return kind.low == 0 and (kind.high & (kind.high + 1)) == 0


def _forbidden_words() -> NDArray[np.uint64]:
    """Return the bits, by word of the header, that no valid header has: one comparison checks many fields."""
    forbidden = np.zeros(1, HEADER_DTYPE)
    for name, kind in _RANGED_FIELDS:
        if _has_free_bits(kind):
            forbidden[name] = ((1 << kind.bits) - 1) ^ kind.high
    return forbidden.view(np.uint64)


_FORBIDDEN: Final = _forbidden_words()
_COMPARED_FIELDS: Final = tuple((name, kind) for name, kind in _RANGED_FIELDS if not _has_free_bits(kind))
assert all(kind.bits == 8 for _, kind in _COMPARED_FIELDS)


def block_runs(headers: NDArray[np.void]) -> Iterator[tuple[int, int]]:
    """Yield half-open ranges of rows that belong to one block of one object.

    A super-datagram of 44 symbols is one or two runs: Python's cost is per run, not per datagram, even with losses.
    """
    n = headers.shape[0]
    if n == 0:
        return
    identity = (headers["object"].astype(np.int64) << 32) | headers["block"]
    breaks = np.flatnonzero(identity[1:] != identity[:-1]) + 1
    start = 0
    for stop in breaks.tolist():
        yield start, stop
        start = stop
    yield start, n
