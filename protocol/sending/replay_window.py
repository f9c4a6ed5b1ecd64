"""Replay protection: each of a receiver's feedback datagrams is accepted once, in any order of arrival."""

from __future__ import annotations

from typing import Final

_WINDOW: Final = 64
"""IPsec's size (RFC 4303 section 3.4.3): more than a receiver sends in the time by which networks reorder."""


class ReplayWindow:
    """The highest counter received, and the received ones of the few below it.

    A datagram that arrives late is accepted; one that arrives twice is a replay.
    """

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit n: whether the highest less n has arrived; counters start at 1

    def accept(self, counter: int) -> bool:
        """Record ``counter``; return whether it arrives for the first time. Counters below the window don't."""
        behind = self._highest - counter
        if behind < 0:
            self._seen = (self._seen << -behind | 1) & ((1 << _WINDOW) - 1) if -behind < _WINDOW else 1
            self._highest = counter
            return True
        if behind >= _WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True
