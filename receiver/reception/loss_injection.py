"""Simulation of a lossy network: drop a share of the arriving datagrams, reproducibly by seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class LossInjector:
    """A filter that drops datagrams at random.

    Attributes:
        dropped_count: number of datagrams dropped.
    """

    def __init__(self, share: float, seed: int) -> None:
        """Drop ``share`` (0..1) of the datagrams."""
        self.dropped_count = 0
        self._share = share
        self._generator = np.random.default_rng(seed)

    def filter_frames(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a copy of the rows that are kept."""
        kept: NDArray[np.uint8] = frames[self._generator.random(frames.shape[0]) >= self._share]
        self.dropped_count += frames.shape[0] - kept.shape[0]
        return kept

    def filter_datagrams(self, datagrams: list[bytes]) -> list[bytes]:
        """Return the datagrams that are kept."""
        kept = [datagram for datagram in datagrams if self._generator.random() >= self._share]
        self.dropped_count += len(datagrams) - len(kept)
        return kept
