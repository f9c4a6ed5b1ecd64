"""Rehearsing a bad network: dropping a share of the datagrams that arrived, the same ones for the same seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class RehearsedLoss:
    """Decides for each datagram by chance whether it counts as lost.

    Attributes:
        dropped_count: datagrams that were dropped.
    """

    def __init__(self, share: float, seed: int) -> None:
        """Drop ``share`` (0..1) of what arrives."""
        self.dropped_count = 0
        self._share = share
        self._generator = np.random.default_rng(seed)

    def filter_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The rows that are kept, copied."""
        kept: NDArray[np.uint8] = frames[self._generator.random(frames.shape[0]) >= self._share]
        self.dropped_count += frames.shape[0] - kept.shape[0]
        return kept

    def filter_datagrams(self, datagrams: list[bytes]) -> list[bytes]:
        """Those that are kept."""
        kept = [datagram for datagram in datagrams if self._generator.random() >= self._share]
        self.dropped_count += len(datagrams) - len(kept)
        return kept
