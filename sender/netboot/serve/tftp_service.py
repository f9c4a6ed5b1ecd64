"""The TFTP server: one socket, bounded transfers, read only.

Transfers use port 69 as well, where the protocol would choose a new port for each: firewalls then need one rule, and a
transfer is known by its client's address and port. Clients accept any port (RFC 1350, section 4).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import os
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import structlog

from protocol.errors import ProtocolError
from sender.netboot.serve.served_names import ServedNames, normalised_name
from sender.netboot.serve.statistics import BootStatistics, TransferResult
from sender.netboot.serve.tftp_codec import (
    Acknowledgement,
    ErrorPacket,
    ReadRequest,
    TftpError,
    decode_tftp_untrusted,
    encode_error,
)
from sender.netboot.serve.tftp_transfer import TftpTransfer, TransferState

TRANSFERS_MAX: Final = 512
"""A large room whose machines are switched on together, each with one transfer at a time."""
TRANSFERS_PER_ADDRESS_MAX: Final = 4
"""Firmware that asks for a size and starts over has two; one machine mustn't take the place of all others."""

Peer = tuple[str, int]

_log = structlog.get_logger(__name__)


class TftpService(asyncio.DatagramProtocol):
    """The TFTP server of one network. Its owner awaits :meth:`close`."""

    def __init__(self, names: ServedNames, statistics: BootStatistics, mtu_bytes: int) -> None:
        """Serve ``names``, in blocks that fit ``mtu_bytes``."""
        self._names = names
        self._statistics = statistics
        self._mtu_bytes = mtu_bytes
        self._transfers: dict[Peer, _Session] = {}
        self._per_address = collections.Counter[str]()
        self._opening: dict[Peer, asyncio.Task[None]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Remember the socket."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """Process a client's packet."""
        try:
            packet = decode_tftp_untrusted(data)
        except ProtocolError as error:
            self._statistics.count_malformed()
            if addr not in self._transfers:
                self._send(addr, encode_error(TftpError.ILLEGAL_OPERATION, str(error)))
            return
        match packet:
            case ReadRequest():
                self._open(packet, addr)
            case Acknowledgement(block):
                if (session := self._transfers.get(addr)) is not None:
                    session.acknowledge(block)
            case ErrorPacket():
                if (session := self._transfers.get(addr)) is not None:
                    session.abort()

    def error_received(self, exc: Exception) -> None:
        """Ignore an ICMP error: a client that is gone times out."""

    async def close(self) -> None:
        """End all transfers, and close the socket."""
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for session in list(self._transfers.values()):
            session.abort()
        if self._transport is not None:
            self._transport.close()

    def _open(self, request: ReadRequest, peer: Peer) -> None:
        if peer in self._opening:
            return  # a repeated request, while the daemon decides
        if (running := self._transfers.get(peer)) is not None:
            if running.is_repetition(request):
                return
            running.abort()  # the client started over on the same port
        if (
            len(self._transfers) + len(self._opening) >= TRANSFERS_MAX
            or self._per_address[peer[0]] >= TRANSFERS_PER_ADDRESS_MAX
        ):
            self._statistics.count_transfer(TransferResult.REFUSED)
            return  # the client repeats its request; an error would end its boot
        self._per_address[peer[0]] += 1
        task = asyncio.ensure_future(self._start(request, peer))
        self._opening[peer] = task
        task.add_done_callback(functools.partial(self._opened, peer))

    def _opened(self, peer: Peer, task: asyncio.Task[None]) -> None:
        del self._opening[peer]
        if peer not in self._transfers:
            self._forget_address(peer)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _start(self, request: ReadRequest, peer: Peer) -> None:
        name = normalised_name(request.file_name)
        source = await self._content(name, peer)
        if source is None:
            self._statistics.count_transfer(TransferResult.NOT_FOUND)
            # Shim and GRUB look for a dozen files that they don't need.
            _log.debug("tftp_file_missing", address=peer[0], file=name)
            self._send(peer, encode_error(TftpError.FILE_NOT_FOUND, "no such file"))
            return
        session = _Session(self, request, peer, source, mtu_bytes=self._mtu_bytes)
        self._transfers[peer] = session
        session.start()

    async def _content(self, name: str, peer: Peer) -> _Content | None:
        script = await self._names.grub_script(name, IPv4Address(peer[0]), by_http=False)
        if script is not None:
            return _Text(script.encode())
        path = self._names.file(name)
        try:
            return None if path is None else _File(path)
        except OSError as error:
            _log.error("boot_file_unreadable", file=str(path), error=error.strerror)
            return None

    def ended(self, session: _Session, result: TransferResult) -> None:
        """Forget an ended transfer; a session calls this."""
        if self._transfers.get(session.peer) is session:
            del self._transfers[session.peer]
            self._forget_address(session.peer)
        self._statistics.count_transfer(result)

    def _forget_address(self, peer: Peer) -> None:
        self._per_address[peer[0]] -= 1
        if not self._per_address[peer[0]]:
            del self._per_address[peer[0]]

    def send(self, peer: Peer, packets: list[bytes]) -> None:
        """Send packets to a client; a session calls this."""
        for packet in packets:
            self._send(peer, packet)

    def _send(self, peer: Peer, packet: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(packet, peer)


class _Session:
    """A transfer with its content and its timer."""

    def __init__(
        self, service: TftpService, request: ReadRequest, peer: Peer, content: _Content, *, mtu_bytes: int
    ) -> None:
        self.peer = peer
        self._service = service
        self._request = request
        self._content = content
        self._started = time.monotonic()
        self._transfer = TftpTransfer(
            content.size_bytes, content.read, request.options, mtu_bytes=mtu_bytes, now=self._started
        )
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def is_repetition(self, request: ReadRequest) -> bool:
        """Return whether ``request`` repeats the one of this transfer before the client has anything of it."""
        return request == self._request and not self._transfer.acknowledged_bytes

    def start(self) -> None:
        self._continue(self._transfer.start())

    def acknowledge(self, block: int) -> None:
        self._step(functools.partial(self._transfer.acknowledge, block))

    def abort(self) -> None:
        self._transfer.abort()
        self._end(TransferResult.ABORTED)

    def _timed_out(self) -> None:
        self._step(self._transfer.timeout)

    def _step(self, step: Callable[[float], list[bytes]]) -> None:
        try:
            packets = step(time.monotonic())
        except OSError as error:
            _log.error("boot_file_unreadable", file=self._request.file_name, error=error.strerror)
            self._service.send(self.peer, [encode_error(TftpError.UNDEFINED, "read error")])
            self.abort()
            return
        self._continue(packets)

    def _continue(self, packets: list[bytes]) -> None:
        self._service.send(self.peer, packets)
        match self._transfer.state:
            case TransferState.COMPLETE:
                self._end(TransferResult.COMPLETE)
            case TransferState.FAILED:
                self._end(TransferResult.TIMED_OUT)
            case _:
                if self._timer is not None:
                    self._timer.cancel()
                delay_s = max(0.0, self._transfer.deadline - time.monotonic())
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._timed_out)

    def _end(self, result: TransferResult) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._content.close()
        _log.info(
            "tftp_transfer_ended",
            address=self.peer[0],
            file=self._request.file_name,
            result=result.value,
            bytes=self._transfer.acknowledged_bytes,
            retransmissions=self._transfer.retransmission_count,
            seconds=round(time.monotonic() - self._started, 2),
        )
        self._service.ended(self, result)


class _Text:
    """A script in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self._content[offset : offset + size_bytes]

    def close(self) -> None:
        pass


class _File:
    """An open file of the medium; a rebuilt medium replaces its files, and a transfer keeps the old one."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size

    def read(self, offset: int, size_bytes: int) -> bytes:
        return os.pread(self._fd, size_bytes, offset)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


_Content = _Text | _File
