"""A read-only NBD server of one image: every block is checked against its hashes before a byte of it is sent.

The server never trusts its clients: connections, requests in flight and their bytes are bounded per connection, and a
client that violates the protocol is disconnected. A damaged block is an I/O error for the client; ``on_damage`` names
it. UNUSED blocks, which an image doesn't hold, read as zeros.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import numpy as np

from protocol.constants import KIB
from protocol.errors import ImageDamagedError, StorageError
from protocol.image.manifest import BlockKind
from sender.export import nbd_protocol as nbd
from sender.export.block_cache import BlockCache
from sender.export.nbd_negotiation import Export, Negotiation, NegotiationState
from sender.export.nbd_protocol import (
    Allocation,
    CommandFlag,
    ErrorValue,
    HandshakeFlag,
    NbdCommand,
    NbdError,
    OptionReply,
    Request,
)
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks

CONNECTIONS_MAX: Final = 16
"""Clients at once: parallel programs open up to eight connections each. Each may hold 32 MiB."""

_REQUESTS_MAX: Final = 64
"""Requests in flight per connection: more than QEMU or libnbd sends."""

_BYTES_IN_FLIGHT_MAX: Final = nbd.REQUEST_BYTES_MAX
"""Bytes of the replies in flight per connection: the longest read, or many short ones."""

_NEGOTIATION_TIMEOUT_S: Final = 30.0
"""Negotiation takes milliseconds; a client that stays silent must not occupy a connection for ever."""

_EXTENTS_MAX: Final = 1 << 14
"""Ranges of one reply to BLOCK_STATUS: 128 KiB. A client asks again from the end of a shorter reply."""

_DISCARD_BYTES: Final = 256 * KIB
_DAMAGE_REPORTS_MAX: Final = 1000
"""Damaged blocks that are reported; a client that retries must not fill the log."""

_FLAGS: Final = {
    NbdCommand.READ: CommandFlag.DONT_FRAGMENT,
    NbdCommand.FLUSH: CommandFlag(0),
    NbdCommand.CACHE: CommandFlag(0),
    NbdCommand.BLOCK_STATUS: CommandFlag.REQUEST_ONE,
}
"""Commands that a read-only export answers, with their flags. FUA is allowed with all of them."""


class NbdServer:
    """Server of one image, as a context manager that ends its threads.

    Attributes:
        served_bytes: raw bytes of stored blocks that were sent, for progress.
        connection_count: clients that are connected.
    """

    def __init__(
        self,
        image: ImageFile,
        *,
        on_damage: Callable[[int, str], None] = lambda _block, _message: None,
        on_disconnect: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        image: an open image, which must stay open until the context ends.
        on_damage: called in the event loop with a block that can't be read and the reason, once per block.
        on_disconnect: called in the event loop when a client that read the export has left.
        """
        manifest = image.manifest
        self._manifest = manifest
        self._export = Export(
            manifest.name,
            f"diskcast image {manifest.image_id.hex()}",
            manifest.raw_bytes,
            max(nbd.PREFERRED_BYTES_MIN, manifest.block_bytes),
        )
        self._executor = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="nbd")
        self._cache = BlockCache(VerifiedBlocks(image), self._executor)
        self._on_damage = on_damage
        self._on_disconnect = on_disconnect
        self._damaged: set[int] = set()
        self.served_bytes = 0
        self.connection_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it leaves, or close the connection at once if there are too many."""
        if self.connection_count >= CONNECTIONS_MAX:
            writer.close()
            return
        self.connection_count += 1
        has_read = False
        try:
            async with asyncio.timeout(_NEGOTIATION_TIMEOUT_S):
                negotiation = await self._negotiate(reader, writer)
            if negotiation.state is NegotiationState.TRANSMISSION:
                has_read = True
                await _Connection(self, negotiation, reader, writer).run()
        except (NbdError, OSError, EOFError, TimeoutError):
            pass  # the client's error: it is disconnected, and others aren't affected
        finally:
            self.connection_count -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            if has_read:
                self._on_disconnect()

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Negotiation:
        writer.write(nbd.build_greeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES))
        flags = nbd.parse_client_flags_untrusted(await reader.readexactly(nbd.CLIENT_FLAGS_BYTES))
        negotiation = Negotiation(self._export, flags)
        while negotiation.state is NegotiationState.OPTIONS:
            header = nbd.parse_option_header_untrusted(await reader.readexactly(nbd.OPTION_HEADER_BYTES))
            if header.length > nbd.OPTION_BYTES_MAX:
                await discard(reader, header.length)
                reply = negotiation.reject(
                    header.option, OptionReply.ERROR_TOO_BIG, "the option's data is too long"
                )
            else:
                data = await reader.readexactly(header.length)
                reply = negotiation.receive_option_untrusted(header.option, data)
            writer.write(reply)
            await writer.drain()
        return negotiation

    async def read(self, block: int) -> bytes | memoryview:
        """Return the raw bytes of a stored block.

        Raises:
            ImageDamagedError: the block is damaged.
            StorageError: the disk failed.
        """
        try:
            raw = await self._cache.read(block)
        except (ImageDamagedError, StorageError) as error:
            if block not in self._damaged and len(self._damaged) < _DAMAGE_REPORTS_MAX:
                self._damaged.add(block)
                self._on_damage(block, str(error))
            raise
        return raw

    def is_in_range(self, request: Request) -> bool:
        """Return whether the request is for a range of the export, and not for an empty one."""
        return 0 < request.length <= self._manifest.raw_bytes - request.offset

    def pieces(self, offset: int, length: int) -> list[tuple[int, int, int, bool]]:
        """Return the pieces of a range: offset, length, block, and whether the block is stored."""
        manifest = self._manifest
        stop = offset + length
        pieces = []
        while offset < stop:
            block = offset // manifest.block_bytes
            piece_stop = min(stop, (block + 1) * manifest.block_bytes)
            pieces.append((offset, piece_stop - offset, block, int(manifest.kind[block]) <= BlockKind.RAW))
            offset = piece_stop
        return pieces

    def block_start(self, block: int) -> int:
        """Return the offset of ``block`` on the disk."""
        return block * self._manifest.block_bytes

    def extents(self, offset: int, length: int) -> list[tuple[int, Allocation]]:
        """Return the state of consecutive ranges from ``offset``, at most ``length`` bytes."""
        block_bytes = self._manifest.block_bytes
        first, last = offset // block_bytes, (offset + length - 1) // block_bytes
        is_stored = self._manifest.kind[first : last + 1] <= BlockKind.RAW
        starts = np.concatenate([[0], np.flatnonzero(is_stored[1:] != is_stored[:-1]) + 1])[:_EXTENTS_MAX]
        stops = np.append(starts[1:], is_stored.size) if starts.size < _EXTENTS_MAX else starts[1:]
        extents = []
        for start, stop in zip(starts[: stops.size].tolist(), stops.tolist(), strict=True):
            range_start = max(offset, (first + start) * block_bytes)
            range_stop = min(offset + length, (first + stop) * block_bytes)
            state = Allocation.DATA if is_stored[start] else Allocation.HOLE | Allocation.ZERO
            extents.append((range_stop - range_start, state))
        return extents


class _Connection:
    """The transmission phase of one client."""

    def __init__(
        self,
        server: NbdServer,
        negotiation: Negotiation,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server = server
        self._structured = negotiation.structured_replies
        self._allocation_selected = negotiation.allocation_selected
        self._reader = reader
        self._writer = writer
        self._changed = asyncio.Condition()
        self._request_count = 0
        self._bytes_in_flight = 0

    async def run(self) -> None:
        """Answer requests until the client disconnects.

        Raises:
            NbdError: the client violates the protocol.
            OSError: the connection failed.
            EOFError: the client left without saying so.
        """
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    header = await self._reader.readexactly(nbd.REQUEST_HEADER_BYTES)
                    request = nbd.parse_request_untrusted(header)
                    if request.command == NbdCommand.DISCONNECT:
                        return
                    if request.command == NbdCommand.WRITE:
                        if request.length > nbd.REQUEST_BYTES_MAX:
                            raise NbdError(f"a write of {request.length} bytes")
                        await discard(self._reader, request.length)
                    cost_bytes = self._cost_bytes(request)
                    await self._begin(cost_bytes)
                    group.create_task(self._answer(request, cost_bytes))
        except BaseExceptionGroup as errors:
            # One failed request ends the connection; all that can fail here is the connection itself.
            _, unexpected = errors.split((NbdError, OSError, EOFError))
            if unexpected is not None:
                raise
            raise NbdError("the connection failed") from errors

    def _cost_bytes(self, request: Request) -> int:
        if request.command == NbdCommand.READ and request.length <= nbd.REQUEST_BYTES_MAX:
            return request.length
        return 0

    async def _begin(self, cost_bytes: int) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._request_count < _REQUESTS_MAX
                    and self._bytes_in_flight + cost_bytes <= _BYTES_IN_FLIGHT_MAX
                )
            )
            self._request_count += 1
            self._bytes_in_flight += cost_bytes

    async def _answer(self, request: Request, cost_bytes: int) -> None:
        try:
            refusal = self._refusal(request)
            if refusal is not None:
                self._send_error(request, *refusal)
            elif request.command == NbdCommand.READ:
                await self._read(request)
            elif request.command == NbdCommand.BLOCK_STATUS:
                extents = self._server.extents(request.offset, request.length)
                if request.flags & CommandFlag.REQUEST_ONE:
                    extents = extents[:1]
                self._writer.write(nbd.build_block_status(request.cookie, extents))
            else:
                self._writer.write(nbd.build_simple_reply(request.cookie))
            await self._writer.drain()
        finally:
            async with self._changed:
                self._request_count -= 1
                self._bytes_in_flight -= cost_bytes
                self._changed.notify_all()

    def _refusal(self, request: Request) -> tuple[ErrorValue, str] | None:
        """Return error and reason for a request that isn't answered; None for one that is."""
        if request.command in (NbdCommand.WRITE, NbdCommand.TRIM, NbdCommand.WRITE_ZEROES):
            return ErrorValue.NOT_PERMITTED, "the export is read-only"
        if request.command not in _FLAGS:
            return ErrorValue.INVALID, "the command isn't supported"
        if request.flags & ~int(_FLAGS[NbdCommand(request.command)] | CommandFlag.FUA):
            return ErrorValue.INVALID, "the command doesn't have these flags"
        if request.command == NbdCommand.BLOCK_STATUS and not self._allocation_selected:
            return ErrorValue.INVALID, "no metadata context was selected"
        if request.command == NbdCommand.FLUSH:
            return None
        if not self._server.is_in_range(request):
            return ErrorValue.INVALID, "the range is outside of the export"
        if request.command == NbdCommand.READ and request.length > nbd.REQUEST_BYTES_MAX:
            return (
                ErrorValue.OVERFLOW,
                f"a read of {request.length} bytes; the limit is {nbd.REQUEST_BYTES_MAX}",
            )
        return None

    def _send_error(
        self, request: Request, error: ErrorValue, message: str, offset: int | None = None
    ) -> None:
        if self._structured and request.command in (NbdCommand.READ, NbdCommand.BLOCK_STATUS):
            self._writer.write(nbd.build_error(request.cookie, error, message, offset))
        else:
            self._writer.write(nbd.build_simple_reply(request.cookie, error))

    async def _read(self, request: Request) -> None:
        server, writer, cookie = self._server, self._writer, request.cookie
        pieces = server.pieces(request.offset, request.length)
        reads = [
            asyncio.ensure_future(server.read(block)) if is_stored else None
            for _, _, block, is_stored in pieces
        ]
        whole = not self._structured or bool(request.flags & CommandFlag.DONT_FRAGMENT)
        parts: list[bytes | memoryview] = []
        hole_start, hole_bytes = 0, 0
        try:
            for (offset, length, block, _), read in zip(pieces, reads, strict=True):
                if read is None:
                    if whole:
                        parts.append(bytes(length))
                    else:
                        hole_start = offset if not hole_bytes else hole_start
                        hole_bytes += length
                    continue
                try:
                    raw = await read
                except (ImageDamagedError, StorageError) as error:
                    self._send_error(request, ErrorValue.INPUT_OUTPUT, str(error), offset)
                    return
                start = offset - server.block_start(block)
                part = memoryview(raw)[start : start + length]
                server.served_bytes += length
                if whole:
                    parts.append(part)
                    continue
                if hole_bytes:
                    writer.write(nbd.build_hole(cookie, hole_start, hole_bytes))
                    hole_bytes = 0
                writer.writelines((nbd.build_data_start(cookie, offset, length), part))
        finally:
            await _end(read for read in reads if read is not None)
        if not whole:
            if hole_bytes:
                writer.write(nbd.build_hole(cookie, hole_start, hole_bytes))
            writer.write(nbd.build_done(cookie))
        elif self._structured:
            start_of_chunk = nbd.build_data_start(cookie, request.offset, request.length, done=True)
            writer.writelines((start_of_chunk, *parts))
        else:
            writer.writelines((nbd.build_simple_reply(cookie), *parts))


async def _end(reads: Iterable[asyncio.Future[bytes | memoryview]]) -> None:
    """Cancel the reads that still run, and take the errors of those that nobody awaited."""
    rest = [read for read in reads if not read.done() or read.exception() is not None]
    for read in rest:
        read.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def discard(reader: asyncio.StreamReader, count: int) -> None:
    """Read and drop ``count`` bytes.

    Raises:
        EOFError: the client left before.
    """
    while count:
        count -= len(await reader.readexactly(min(count, _DISCARD_BYTES)))


async def serve_until(
    server: NbdServer,
    listener: socket.socket,
    stopped: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve all clients of a listening UNIX socket until ``stopped``; then disconnect those that are left.

    Args:
        server: the server.
        listener: the socket.
        stopped: ends it.
        on_ready: called once clients can connect.
    """
    clients: set[asyncio.Task[None]] = set()

    def start_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        clients.add(task)
        task.add_done_callback(clients.discard)

    acceptor = await asyncio.start_unix_server(start_client, sock=listener)
    try:
        on_ready()
        await stopped.wait()
    finally:
        acceptor.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
