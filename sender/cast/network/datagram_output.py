"""Send many datagrams in one system call, with the fastest method of this machine.

Three methods have the same result on the wire: one ``sendmsg`` with a buffer that the kernel or the card segments
(UDP_SEGMENT, since Linux 4.18), ``sendmmsg``, and one call per datagram.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigurationError, DiskcastError, InterfaceError

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
"""Socket option of linux/udp.h: size of the datagrams into which a buffer is segmented."""

_UDP_PAYLOAD_BYTES_MAX: Final = 65507
"""65535 - 20 IPv4 - 8 UDP: a super-datagram is one IP packet until segmented (with IPv6 it could be 20 longer)."""
_SEGMENTS_MAX: Final = 64
"""UDP_MAX_SEGMENTS of kernels before 6.9."""
_SENDMMSG_MAX: Final = 64
"""More datagrams per call would only make the pacing coarser."""

_SEGMENTATION_REFUSED: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
"""Errors of UDP_SEGMENT on interfaces without checksum offload and in older kernels."""

_IOVEC = np.dtype([("base", np.uintp), ("length", np.uintp)])
_MSGHDR = np.dtype(
    {
        "names": ["iov", "iovlen"],
        "formats": [np.uintp, np.uintp],
        "offsets": [16, 24],
        "itemsize": 64,
    }
)
"""``struct mmsghdr`` of 64-bit Linux: msghdr of 56 bytes, msg_len and padding; only these two fields aren't zero."""


class SendMode(enum.StrEnum):
    """A method of sending, the fastest first."""

    SEGMENTATION = "segmentation"
    SENDMMSG = "sendmmsg"
    SENDTO = "sendto"


def _libc_sendmmsg() -> Callable[[int, int, int, int], int] | None:
    if struct.calcsize("P") != 8:  # the layouts above are those of 64-bit systems
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "sendmmsg", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", function)


def super_datagram_frames(frame_bytes: int) -> int:
    """Return how many datagrams of this size fit in one segmented call; at least 1."""
    return max(1, min(_SEGMENTS_MAX, _UDP_PAYLOAD_BYTES_MAX // frame_bytes))


def typed_send_error(error: OSError, destination: str, frame_bytes: int) -> DiskcastError:
    """Translate a failed send into an error for the operator.

    Args:
        error: raised by a send call.
        destination: group and port, for the message.
        frame_bytes: size of the datagrams.
    """
    if error.errno == errno.EMSGSIZE:
        return ConfigurationError(
            f"datagrams of {frame_bytes} bytes are too large for the path to {destination}: choose a smaller "
            "--symbol-size, or raise the interface's MTU"
        )
    advice = "check the interface's state (ip address show)"
    if error.errno == errno.EPERM:
        advice = "allow outgoing UDP to the group in this machine's firewall (nft list ruleset)"
    return InterfaceError(f"can't send to {destination}: {error.strerror}; {advice}")


class DatagramOutput:
    """An output for rows of frames through a connected socket.

    Attributes:
        mode: the current method; a slower one takes over if the interface refuses the first.
        frames_per_call: most rows that :meth:`send` takes.
    """

    def __init__(self, sock: socket.socket, frame_bytes: int, mode: SendMode | None = None) -> None:
        """Detect the fastest working method.

        Args:
            sock: connected, blocking, with a send timeout.
            frame_bytes: size of every datagram.
            mode: use this method and no faster one.
        """
        self._socket = sock
        self._frame_bytes = frame_bytes
        self._sendmmsg = _libc_sendmmsg()
        self._ancillary = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", frame_bytes))]
        self._iovecs = np.zeros(_SENDMMSG_MAX, _IOVEC)
        self._iovecs["length"] = frame_bytes
        self._headers = np.zeros(_SENDMMSG_MAX, _MSGHDR)
        self._headers["iov"] = self._iovecs.ctypes.data + np.arange(_SENDMMSG_MAX) * _IOVEC.itemsize
        self._headers["iovlen"] = 1
        self._row_offsets = np.arange(_SENDMMSG_MAX, dtype=np.uintp) * np.uintp(frame_bytes)
        self.mode = mode or SendMode.SEGMENTATION
        if self.mode is SendMode.SEGMENTATION and not self._supports_segmentation():
            self.mode = SendMode.SENDMMSG
        if self.mode is SendMode.SENDMMSG and self._sendmmsg is None:
            self.mode = SendMode.SENDTO

    @property
    def frames_per_call(self) -> int:
        """Most frames that one call of :meth:`send` takes; at least 1."""
        if self.mode is SendMode.SEGMENTATION:
            return super_datagram_frames(self._frame_bytes)
        return _SENDMMSG_MAX

    def send(self, frames: NDArray[np.uint8]) -> int:
        """Send as many of the first rows as the kernel takes in one call.

        Args:
            frames: ``uint8[1..frames_per_call, frame_bytes]``, contiguous.

        Returns:
            Number of rows sent; 0 if the method had to change and the call can be repeated.

        Raises:
            OSError: as sendmsg(2); BlockingIOError if the buffer stayed full for the send timeout.
        """
        assert frames.flags.c_contiguous
        if self.mode is SendMode.SEGMENTATION:
            return self._send_segmented(frames)
        if self.mode is SendMode.SENDMMSG:
            return self._send_mmsg(frames)
        self._socket.send(frames[0].data)
        return 1

    def _supports_segmentation(self) -> bool:
        try:
            self._socket.getsockopt(_SOL_UDP, _UDP_SEGMENT)
        except OSError:
            return False
        return True

    def _send_segmented(self, frames: NDArray[np.uint8]) -> int:
        try:
            self._socket.sendmsg((frames.data,), self._ancillary)
        except OSError as error:
            if error.errno not in _SEGMENTATION_REFUSED:
                raise
            self.mode = SendMode.SENDMMSG if self._sendmmsg is not None else SendMode.SENDTO
            return 0
        return len(frames)

    def _send_mmsg(self, frames: NDArray[np.uint8]) -> int:
        assert self._sendmmsg is not None
        count = frames.shape[0]
        np.add(self._row_offsets[:count], np.uintp(frames.ctypes.data), out=self._iovecs["base"][:count])
        sent = self._sendmmsg(self._socket.fileno(), self._headers.ctypes.data, count, 0)
        if sent < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return sent
