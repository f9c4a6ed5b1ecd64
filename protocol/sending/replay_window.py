"""Which of a receiver's feedback datagrams were taken already: each once, in whatever order networks deliver them."""

from __future__ import annotations

from typing import Final

_WINDOW: Final = 64
"""As IPsec has it (RFC 4303 section 3.4.3): more than a receiver sends in the time by which networks reorder."""


class ReplayWindow:
    """Remembers the highest counter and which of the few below it came.

    A datagram that another one has overtaken is as good as before; one that comes twice is somebody's recording.
    """

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit n: whether the highest less n came; counters begin at 1

    def accept(self, counter: int) -> bool:
        """Whether ``counter`` comes for the first time, as far as that is known; from now on it has come."""
        behind = self._highest - counter
        if behind < 0:
            self._seen = (self._seen << -behind | 1) & ((1 << _WINDOW) - 1) if -behind < _WINDOW else 1
            self._highest = counter
            return True
        if behind >= _WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True
