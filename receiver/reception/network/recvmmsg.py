"""Batched receive: many datagrams with one system call, into memory laid out as rows of frames.

A *message* is one entry of recvmmsg(2): one datagram or, on a socket with UDP_GRO, up to 128 datagrams of equal size
that the kernel coalesced. Message ``i`` lands at row ``i * segments`` of a slab
``uint8[messages * segments, frame_bytes]``. Full messages are therefore consecutive rows, and a batch is a view of the
slab, without a copy and without a Python object per datagram.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX

SEGMENTS_MAX = 128
"""Most datagrams that the kernel coalesces into one message: UDP_MAX_SEGMENTS of Linux."""

MESSAGE_BYTES_MAX = 65535
"""Longest message: the UDP length field's limit bounds coalesced messages too."""

COALESCED_MESSAGES = 16
"""Messages per call while they are coalesced: a megabyte of frames, which stays in the second-level cache between the
kernel's copy and the copy into the blocks' buffers."""

SINGLE_MESSAGES = 256
"""Messages per call while each is one datagram: the call's fixed cost is then 0.1 µs per datagram."""

ODD_DATAGRAMS_MAX = 64
"""Most datagrams of other than frame size in one batch; a cast has a few per second, a flood has more."""

CLOCK_STEP_S = 0.001
"""Change of the offset between the real-time and the monotonic clock that means the clock was set; slewing moves both
alike. A pause between the two readings may look like such a step too, which does no harm."""

_CONTROL_BYTES = 64
"""Space for the two control messages that the socket may enable: 32 and 24 bytes with padding on 64-bit machines."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    """``struct mmsghdr`` of recvmmsg(2)."""

    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint))


class _IntControl(ctypes.Structure):
    """A ``struct cmsghdr`` with one int, the UDP_GRO control message of udp(7)."""

    _fields_ = (
        ("len", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("type", ctypes.c_int),
        ("value", ctypes.c_int),
    )


class _StampControl(ctypes.Structure):
    """A ``struct cmsghdr`` with the ``struct timespec`` of SO_TIMESTAMPNS (socket(7)); precedes any other."""

    _fields_ = (
        ("len", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("type", ctypes.c_int),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class DatagramBatch(NamedTuple):
    """The datagrams taken from the socket by one call; valid until the next call."""

    frames: NDArray[np.uint8]
    """Datagrams of exactly frame size in order of arrival: ``uint8[n, frame_bytes]``, contiguous."""
    datagrams: list[bytes]
    """Datagrams of any other size that a control message can have, at most :data:`ODD_DATAGRAMS_MAX`."""
    drained: bool
    """True if the queue was emptied, which makes another call now pointless."""
    age_s: float | None = None
    """Age of one of the last frames by the kernel's time stamp; None without frames or if it is unknown."""
    aged_row: int = -1
    """Row of ``frames`` to which ``age_s`` applies: the first of the last message. Coalesced datagrams carry the time
    stamp of the first one, and may have been collected for milliseconds."""


def _find_recvmmsg() -> Callable[[int, int, int, int, None], int]:
    """Return the C library's recvmmsg; each call releases the interpreter lock while the kernel copies.

    Raises:
        OSError: the C library has none.
    """
    try:
        function = ctypes.CDLL(None, use_errno=True).recvmmsg
    except AttributeError as error:
        raise OSError(errno.ENOSYS, "recvmmsg isn't in this C library") from error
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int, None], int]", function)


class AgeClock:
    """Ages of the kernel's time stamps, which are of the real-time clock.

    A machine that has just booted may set that clock in the middle of a cast. The ages of datagrams queued at that
    moment would be wrong, and would spoil the minimum delay for the rest of the cast.
    """

    def __init__(
        self, real_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._real_s = real_s
        self._monotonic_s = monotonic_s
        self._offset_s = real_s() - monotonic_s()
        self._trusted = True

    def age_s(self, stamp_s: float, *, drained: bool) -> float | None:
        """Return the age of a time stamp that was just taken from the queue.

        Args:
            stamp_s: seconds of the real-time clock.
            drained: whether the queue is empty now.

        Returns:
            Seconds; None if the clock was set since that datagram arrived.
        """
        now_s = self._real_s()
        offset_s = now_s - self._monotonic_s()
        if abs(offset_s - self._offset_s) > CLOCK_STEP_S:
            self._trusted = False
        self._offset_s = offset_s
        age_s = max(0.0, now_s - stamp_s) if self._trusted else None
        # Once the queue is empty, all later datagrams are stamped by the clock as it is now.
        self._trusted = self._trusted or drained
        return age_s


class SlabCounters:
    """Counters of datagrams that never reached a batch."""

    def __init__(self) -> None:
        self.oversize_count = 0
        """Datagrams longer than a frame and longer than a control message."""
        self.surplus_count = 0
        """Datagrams of other than frame size beyond :data:`ODD_DATAGRAMS_MAX` in a batch."""


class MessageSlab:
    """Receive by recvmmsg(2) into one preallocated slab; the memory of messages that never arrive is never touched."""

    def __init__(self, frame_bytes: int, *, coalesced: bool, stamped: bool) -> None:
        """Prepare the arrays that the kernel fills.

        Args:
            frame_bytes: length of a frame.
            coalesced: whether the socket has UDP_GRO, and a message may be many datagrams.
            stamped: whether the socket has SO_TIMESTAMPNS, and every message carries its time of arrival.

        Raises:
            OSError: this C library or kernel has no recvmmsg.
        """
        self.counters = SlabCounters()
        self._frame_bytes = frame_bytes
        self._segments = min(SEGMENTS_MAX, MESSAGE_BYTES_MAX // frame_bytes) if coalesced else 1
        message_bytes = max(self._segments * frame_bytes, CONTROL_DATAGRAM_BYTES_MAX)
        self._slab = np.empty((SINGLE_MESSAGES, message_bytes), np.uint8)
        rows = self._slab[:, : self._segments * frame_bytes]
        self._rows = rows.reshape(-1, frame_bytes) if rows.flags.c_contiguous else rows
        self._in_place = rows.flags.c_contiguous
        self._compact = np.empty((0, frame_bytes), np.uint8)
        self._messages_per_call = COALESCED_MESSAGES if coalesced else SINGLE_MESSAGES
        self._clock = AgeClock() if stamped else None
        self._stamp_bytes = ctypes.sizeof(_StampControl) if stamped else 0
        self._prepare_headers(message_bytes)
        self._recvmmsg = _find_recvmmsg()

    def _prepare_headers(self, message_bytes: int) -> None:
        header_bytes, vector_bytes = ctypes.sizeof(_Mmsghdr), ctypes.sizeof(_Iovec)
        memory = np.zeros(SINGLE_MESSAGES * header_bytes, np.uint8)
        controls = np.zeros(SINGLE_MESSAGES * _CONTROL_BYTES, np.uint8)
        self._headers = (_Mmsghdr * SINGLE_MESSAGES).from_buffer(memory.data)
        self._vectors = (_Iovec * SINGLE_MESSAGES)()
        self._headers_address = memory.ctypes.data
        for index in range(SINGLE_MESSAGES):
            self._vectors[index] = _Iovec(self._slab.ctypes.data + index * message_bytes, message_bytes)
            header = self._headers[index].hdr
            header.iov = ctypes.addressof(self._vectors) + index * vector_bytes
            header.iovlen = 1
            header.control = controls.ctypes.data + index * _CONTROL_BYTES
            header.controllen = _CONTROL_BYTES
        count = (SINGLE_MESSAGES,)
        size_type = f"u{ctypes.sizeof(ctypes.c_size_t)}"
        self._lengths: NDArray[np.uint32] = np.ndarray(
            count, np.uint32, memory, _Mmsghdr.len.offset, (header_bytes,)
        )
        self._flags: NDArray[np.int32] = np.ndarray(
            count, np.int32, memory, _Msghdr.flags.offset, (header_bytes,)
        )
        self._control_lengths: NDArray[np.uint64] = np.ndarray(
            count, size_type, memory, _Msghdr.controllen.offset, (header_bytes,)
        )
        self._segment_sizes: NDArray[np.int32] = np.ndarray(
            count, np.int32, controls, self._stamp_bytes + _IntControl.value.offset, (_CONTROL_BYTES,)
        )
        self._stamps = [
            _StampControl.from_buffer(controls.data, i * _CONTROL_BYTES) for i in range(SINGLE_MESSAGES)
        ]

    def receive(self, sock: socket.socket) -> DatagramBatch | None:
        """Take the waiting datagrams, up to one batch; never blocks.

        Returns:
            The batch; None if no datagram is waiting.

        Raises:
            OSError: the socket failed.
        """
        limit = self._messages_per_call
        count = self._recvmmsg(sock.fileno(), self._headers_address, limit, socket.MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return None
            raise OSError(code, os.strerror(code))
        return self._batch(count, drained=count < limit)

    def _batch(self, count: int, *, drained: bool) -> DatagramBatch:
        lengths = self._lengths[:count].astype(np.int64)
        frame_bytes = self._frame_bytes
        coalesced = self._control_lengths[:count] > self._stamp_bytes
        segment_sizes = np.where(coalesced, self._segment_sizes[:count], lengths)
        self._control_lengths[:count] = _CONTROL_BYTES
        truncated = (self._flags[:count] & int(socket.MSG_TRUNC)) != 0
        regular = (segment_sizes == frame_bytes) & ~truncated
        frame_counts = np.where(regular, lengths // frame_bytes, 0)
        frame_count = int(frame_counts.sum())
        if self._segments > 1:
            # Every message of a wide slab touches new memory: read many per call only while they are single datagrams.
            self._messages_per_call = COALESCED_MESSAGES if frame_count > 4 * count else SINGLE_MESSAGES
        odd = ~regular | (lengths != frame_counts * frame_bytes)
        datagrams = (
            self._odd_datagrams(np.flatnonzero(odd), lengths, segment_sizes, truncated) if odd.any() else []
        )
        age_s, aged_row = None, -1
        if frame_count:
            message = int(np.flatnonzero(frame_counts)[-1])
            age_s = self._age_s(message, drained=drained)
            aged_row = frame_count - int(frame_counts[message])
        if self._in_place and (frame_counts[:-1] == self._segments).all():
            return DatagramBatch(self._rows[:frame_count], datagrams, drained, age_s, aged_row)
        return DatagramBatch(self._compacted(frame_counts, frame_count), datagrams, drained, age_s, aged_row)

    def _age_s(self, message: int, *, drained: bool) -> float | None:
        if self._clock is None:
            return None
        stamp = self._stamps[message]
        return self._clock.age_s(stamp.seconds + stamp.nanoseconds / 1e9, drained=drained)

    def _compacted(self, frame_counts: NDArray[np.int64], frame_count: int) -> NDArray[np.uint8]:
        """Copy the rows that hold frames together, as needed on networks that coalesce unevenly or not at all."""
        if self._compact.shape[0] < frame_count:
            self._compact = np.empty((frame_count, self._frame_bytes), np.uint8)
        starts = np.arange(frame_counts.size) * self._segments
        skipped = np.cumsum(frame_counts) - frame_counts
        index = np.repeat(starts - skipped, frame_counts) + np.arange(frame_count)
        frames = self._compact[:frame_count]
        # mode other than "raise" is what lets take() write into ``out`` without a buffer of its own.
        np.take(self._rows, index, axis=0, out=frames, mode="clip")
        return frames

    def _odd_datagrams(
        self,
        messages: NDArray[np.int64],
        lengths: NDArray[np.int64],
        segment_sizes: NDArray[np.int64],
        truncated: NDArray[np.bool_],
    ) -> list[bytes]:
        """Return copies of the datagrams of other than frame size, of which a cast has few."""
        datagrams: list[bytes] = []
        for message in messages.tolist():
            length, size = int(lengths[message]), int(segment_sizes[message])
            behind_frames = size == self._frame_bytes and not truncated[message]
            start = length - length % size if behind_frames else 0
            offsets = range(start, length, size) if size else range(1)
            if truncated[message] or (size > CONTROL_DATAGRAM_BYTES_MAX and not behind_frames):
                self.counters.oversize_count += len(offsets)
                continue
            taken = offsets[: ODD_DATAGRAMS_MAX - len(datagrams)]
            self.counters.surplus_count += len(offsets) - len(taken)
            row = self._slab[message]
            datagrams += [row[offset : min(offset + size, length)].tobytes() for offset in taken]
        return datagrams


class PlainSlab:
    """Receive by one recv(2) per datagram, for kernels without recvmmsg: slow, but with the same batches."""

    def __init__(self, frame_bytes: int) -> None:
        self.counters = SlabCounters()
        self._frame_bytes = frame_bytes
        self._slab = np.empty((SINGLE_MESSAGES, max(frame_bytes, CONTROL_DATAGRAM_BYTES_MAX)), np.uint8)
        self._buffers = [row.data for row in self._slab]

    def receive(self, sock: socket.socket) -> DatagramBatch | None:
        """Take the waiting datagrams, as :meth:`MessageSlab.receive`."""
        datagrams: list[bytes] = []
        row = 0
        drained = False
        for taken in range(SINGLE_MESSAGES):
            buffer = self._buffers[row]
            try:
                # MSG_TRUNC returns the datagram's real length, which exposes an oversize one.
                length = sock.recv_into(buffer, 0, socket.MSG_DONTWAIT | socket.MSG_TRUNC)
            except (BlockingIOError, InterruptedError):
                if taken == 0:
                    return None
                drained = True
                break
            if length == self._frame_bytes:
                row += 1
            elif length > CONTROL_DATAGRAM_BYTES_MAX:
                self.counters.oversize_count += 1
            elif len(datagrams) < ODD_DATAGRAMS_MAX:
                datagrams.append(bytes(buffer[:length]))
            else:
                self.counters.surplus_count += 1
        return DatagramBatch(np.ascontiguousarray(self._slab[:row, : self._frame_bytes]), datagrams, drained)
