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


def fill_constant_headers(frames: NDArray[np.uint8], *, cast_id: int, session_token: int) -> None:
    """Write the columns that never change during a cast, once for each reused buffer of the sender."""
    headers = header_view(frames)
    headers["magic"] = WIRE_MAGIC
    headers["version"] = WIRE_VERSION
    headers["type"] = SymbolHeader.WIRE_TYPE
    headers["cast_id"] = cast_id
    headers["session_token"] = session_token


class HeaderFilter:
    """Filter that splits a batch of received frames into those of a session and rejected ones."""

    def __init__(self, *, cast_id: int, session_token: int) -> None:
        constant = np.zeros(1, HEADER_DTYPE)
        constant["magic"] = WIRE_MAGIC
        constant["version"] = WIRE_VERSION
        constant["type"] = SymbolHeader.WIRE_TYPE
        constant["cast_id"] = cast_id
        constant["session_token"] = session_token
        # Two 8-byte words hold all constant fields: two comparisons per row instead of five.
        self._words = constant.view(">u8").reshape(1, -1)[0, :2].copy()
        self._cast_id = cast_id

    def accept_untrusted(self, frames: NDArray[np.uint8], rejects: dict[str, int]) -> NDArray[np.bool_]:
        """Return the rows that belong to this session and have their fields in range; count the others.

        Args:
            frames: ``uint8[n, 32 + symbol_bytes]``.
            rejects: counts by reason, added to.

        Returns:
            ``bool[n]``.
        """
        n = frames.shape[0]
        words = np.ndarray((n, 2), ">u8", buffer=frames.data, strides=(frames.strides[0], 8))
        headers = header_view(frames)
        ours = (words[:, 0] == self._words[0]) & (words[:, 1] == self._words[1])
        in_range = np.ones(n, np.bool_)
        for field in _RANGED_FIELDS:
            assert isinstance(field.kind, UInt)
            column = headers[field.name]
            if field.kind.low > 0:
                in_range &= column >= field.kind.low
            if field.kind.high < (1 << field.kind.bits) - 1:
                in_range &= column <= field.kind.high
        accepted: NDArray[np.bool_] = ours & in_range
        if not accepted.all():
            self._count_rejects(headers, ours, in_range, rejects)
        return accepted

    def _count_rejects(
        self,
        headers: NDArray[np.void],
        ours: NDArray[np.bool_],
        in_range: NDArray[np.bool_],
        rejects: dict[str, int],
    ) -> None:
        remaining = ~(ours & in_range)
        tests = (
            ("bad_magic", headers["magic"] != WIRE_MAGIC),
            ("bad_version", headers["version"] != WIRE_VERSION),
            ("bad_type", headers["type"] != SymbolHeader.WIRE_TYPE),
            ("foreign_cast", headers["cast_id"] != self._cast_id),
            ("stale_session", ~ours),
            ("bad_field", ~in_range),
        )
        for reason, test in tests:
            hit = remaining & test
            count = int(np.count_nonzero(hit))
            if count:
                rejects[reason] = rejects.get(reason, 0) + count
                remaining &= ~hit


_RANGED_FIELDS = tuple(
    field for field in SymbolHeader.FIELDS if field.name in {"object", "flags", "block", "k", "esi"}
)


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
