"""One TFTP transfer to a client as a state machine: packets and times in, packets out. Pure.

The sender's side of RFC 1350 with the windows of RFC 7440: a window of blocks is sent, and the next one after its
acknowledgement. An acknowledgement of an earlier block of the window means loss after it: the window restarts there.
Repeated acknowledgements are ignored, or two machines would double every packet (the Sorcerer's Apprentice bug,
RFC 1123, 4.2.3.1).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

from sender.netboot.serve.tftp_codec import (
    BLOCK_BYTES_DEFAULT,
    BLOCK_BYTES_LIMIT,
    BLOCK_BYTES_MIN,
    BLOCK_NUMBERS,
    encode_data,
    encode_option_ack,
)

WINDOW_BLOCKS_MAX: Final = 32
"""About 45 KiB: fits the receive buffers of boot firmware; more is faster only over long distances."""
RETRANSMIT_FIRST_S: Final = 1.0
RETRANSMIT_MAX_S: Final = 4.0
RETRANSMIT_COUNT_MAX: Final = 6
"""About 20 s in all: longer than a switch port that learns spanning tree's state after a link flap takes to forward
with portfast; a machine that was switched off doesn't hold its transfer for minutes."""
_HEADERS_BYTES: Final = 20 + 8 + 4
"""IPv4, UDP, TFTP."""


class TransferState(enum.Enum):
    """State of a transfer."""

    OPTIONS = enum.auto()
    """The option acknowledgement was sent, and not acknowledged yet."""
    DATA = enum.auto()
    COMPLETE = enum.auto()
    FAILED = enum.auto()
    """The client is silent, or ended the transfer."""


class TftpTransfer:
    """A transfer of one file.

    Attributes:
        state: its state.
        size_bytes: size of the file.
        acknowledged_bytes: bytes that have arrived.
        retransmission_count: packets or windows that were sent again.
    """

    def __init__(
        self,
        size_bytes: int,
        read: Callable[[int, int], bytes],
        options: Mapping[str, str],
        *,
        mtu_bytes: int,
        now: float,
    ) -> None:
        """Prepare a transfer; :meth:`start` returns its first packets.

        Args:
            size_bytes: size of the file.
            read: returns the bytes at an offset, as many as asked for unless the file ends there.
            options: options of the request; unknown and invalid ones are ignored (RFC 2347).
            mtu_bytes: largest IP packet: blocks never need fragments, which boot ROMs can't join.
            now: monotonic seconds.
        """
        self._read = read
        self.size_bytes = size_bytes
        self._window = 1
        accepted: dict[str, int] = {}
        block_bytes = BLOCK_BYTES_DEFAULT
        if (wanted := _number(options.get("blksize"), BLOCK_BYTES_MIN, BLOCK_BYTES_LIMIT)) is not None:
            block_bytes = accepted["blksize"] = min(wanted, mtu_bytes - _HEADERS_BYTES)
        if (wanted := _number(options.get("windowsize"), 1, BLOCK_NUMBERS - 1)) is not None:
            self._window = accepted["windowsize"] = min(wanted, WINDOW_BLOCKS_MAX)
        if "tsize" in options:
            accepted["tsize"] = size_bytes
        self._timeout_s = RETRANSMIT_FIRST_S
        if (wanted := _number(options.get("timeout"), 1, 255)) is not None:
            accepted["timeout"] = wanted
        self._block_bytes = block_bytes
        self._block_count = size_bytes // block_bytes + 1
        self._acknowledged = 0
        self._attempts = 0
        self.retransmission_count = 0
        self._option_ack = encode_option_ack(accepted) if accepted else None
        self.state = TransferState.OPTIONS if accepted else TransferState.DATA
        self._deadline = now + self._timeout_s

    @property
    def acknowledged_bytes(self) -> int:
        """Return the bytes that have arrived."""
        return min(self._acknowledged * self._block_bytes, self.size_bytes)

    @property
    def ended(self) -> bool:
        """Return whether nothing more will be sent."""
        return self.state in (TransferState.COMPLETE, TransferState.FAILED)

    @property
    def deadline(self) -> float:
        """Return the time of the next call of :meth:`timeout`."""
        return self._deadline

    def start(self) -> list[bytes]:
        """Return the first packets."""
        return self._current_packets()

    def acknowledge(self, block: int, now: float) -> list[bytes]:
        """Process an acknowledgement, and return the packets to send."""
        if self.ended:
            return []
        if self.state is TransferState.OPTIONS:
            if block != 0:
                return []
            self.state = TransferState.DATA
            return self._progress(now)
        ahead = (block - self._acknowledged) % BLOCK_NUMBERS
        in_flight = min(self._window, self._block_count - self._acknowledged)
        if not 0 < ahead <= in_flight:
            return []
        self._acknowledged += ahead
        if self._acknowledged == self._block_count:
            self.state = TransferState.COMPLETE
            return []
        return self._progress(now)

    def abort(self) -> None:
        """End the transfer: the client sent an error."""
        if not self.ended:
            self.state = TransferState.FAILED

    def timeout(self, now: float) -> list[bytes]:
        """Return the packets to send again; end the transfer after too many attempts."""
        if self.ended or now < self._deadline:
            return []
        self._attempts += 1
        if self._attempts > RETRANSMIT_COUNT_MAX:
            self.state = TransferState.FAILED
            return []
        self._timeout_s = min(2 * self._timeout_s, RETRANSMIT_MAX_S)
        self._deadline = now + self._timeout_s
        self.retransmission_count += 1
        return self._current_packets()

    def _progress(self, now: float) -> list[bytes]:
        self._attempts = 0
        self._timeout_s = RETRANSMIT_FIRST_S
        self._deadline = now + self._timeout_s
        return self._current_packets()

    def _current_packets(self) -> list[bytes]:
        if self.state is TransferState.OPTIONS:
            assert self._option_ack is not None
            return [self._option_ack]
        first = self._acknowledged
        last = min(first + self._window, self._block_count)
        content = self._read(first * self._block_bytes, (last - first) * self._block_bytes)
        return [
            encode_data(block + 1, content[at : at + self._block_bytes])
            for block in range(first, last)
            for at in ((block - first) * self._block_bytes,)
        ]


def _number(text: str | None, low: int, high: int) -> int | None:
    """Return an option's number; None if it is missing or out of range, which means that the option is ignored."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    return int(text) if low <= int(text) <= high else None
