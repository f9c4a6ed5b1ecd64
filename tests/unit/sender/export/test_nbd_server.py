"""The NBD server with real clients: libnbd's and QEMU's tools, and a client that breaks the rules."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from protocol.errors import AddressInUseError
from sender.export import nbd_server
from sender.export.block_cache import BlockCache
from sender.export.nbd_protocol import REQUEST_BYTES_MAX, Allocation, NbdOption
from sender.export.nbd_server import NbdServer, serve_until
from sender.export.unix_socket import listening_socket
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks
from tests.fuzz.export_targets import context_query, info_query, option, request
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image
from tests.support.programs.processes import require_program

KINDS = "drzzuddurzd"


def raw_of(made: MadeImage) -> bytes:
    """Return the content as the server shows it: unused blocks read as zeros."""
    return b"".join(
        bytes(len(block)) if letter == "u" else block
        for letter, block in zip(
            KINDS,
            [made.raw[at : at + BLOCK_BYTES] for at in range(0, len(made.raw), BLOCK_BYTES)],
            strict=True,
        )
    )


@pytest.fixture
def made() -> MadeImage:
    return make_image(KINDS, tail_bytes=4096)


@pytest.fixture
def path(made: MadeImage, tmp_path: Path) -> Path:
    return made.write(tmp_path / "a.dci")


@contextlib.asynccontextmanager
async def running(
    path: Path, damage: list[tuple[int, str]] | None = None, server_class: type[NbdServer] = NbdServer
) -> AsyncIterator[Path]:
    stopped = asyncio.Event()
    ready = asyncio.Event()
    found = [] if damage is None else damage
    with (
        ImageFile.open(path) as image,
        listening_socket(None, name="nbd") as (listener, socket_path),
        server_class(image, on_damage=lambda block, reason: found.append((block, reason))) as server,
    ):
        serving = asyncio.ensure_future(serve_until(server, listener, stopped, ready.set))
        await ready.wait()
        try:
            yield socket_path
        finally:
            stopped.set()
            await serving


async def tool(*argv: str | Path, check: bool = True) -> str:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=60, check=False)

    done = await asyncio.to_thread(run)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def uri(socket_path: Path) -> str:
    return f"nbd+unix:///?socket={socket_path}"


def test_libnbd_reads_content_and_holes(made: MadeImage, path: Path, tmp_path: Path) -> None:
    require_program("nbdcopy")

    async def main() -> None:
        async with running(path) as socket_path:
            await tool("nbdcopy", uri(socket_path), tmp_path / "raw")
            described = json.loads(await tool("nbdinfo", "--json", uri(socket_path)))
            extents = json.loads(await tool("nbdinfo", "--json", "--map", uri(socket_path)))
        export = described["exports"][0]
        assert export["export-size"] == len(made.raw)
        assert export["is_read_only"]
        assert export["can_multi_conn"]
        assert export["contexts"] == ["base:allocation"]
        assert [(e["offset"] // BLOCK_BYTES, e["type"]) for e in extents] == [
            *((0, 0), (2, 3), (5, 0), (7, 3), (8, 0), (9, 3), (10, 0))
        ]

    asyncio.run(main())
    assert (tmp_path / "raw").read_bytes() == raw_of(made)


def test_qemu_reads_the_same(made: MadeImage, path: Path, tmp_path: Path) -> None:
    require_program("qemu-img")
    (tmp_path / "raw").write_bytes(raw_of(made))

    async def main() -> None:
        async with running(path) as socket_path:
            said = await tool(
                "qemu-img", "compare", "-f", "raw", "-F", "raw", uri(socket_path), tmp_path / "raw"
            )
            assert "identical" in said

    asyncio.run(main())


def test_damaged_block_is_an_error_for_its_readers_only(made: MadeImage, path: Path, tmp_path: Path) -> None:
    """A flipped bit must never reach a reader, and must not stop the reading of other blocks."""
    with path.open("r+b") as file:
        file.seek(made.stored_offset(5) + 10)
        octet = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([octet[0] ^ 1]))
    damage: list[tuple[int, str]] = []

    async def main() -> None:
        async with running(path, damage) as socket_path:
            said = await tool("nbdcopy", uri(socket_path), tmp_path / "raw", check=False)
            assert "Input/output error" in said
            await tool("nbdcopy", uri(socket_path), tmp_path / "raw", check=False)
            client = await Client.connect(socket_path)
            assert await client.read(4 * BLOCK_BYTES, 3 * BLOCK_BYTES) == 5  # EIO
            assert await client.read(6 * BLOCK_BYTES, 100) == made.raw[6 * BLOCK_BYTES :][:100]
            client.close()

    asyncio.run(main())
    assert [block for block, _ in damage] == [5]
    assert "block 5" in damage[0][1]


class Client:
    """A client with simple replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, socket_path: Path, *options: bytes) -> "Client":
        client = cls(*await asyncio.open_unix_connection(str(socket_path)))
        await client.reader.readexactly(18)
        client.writer.write(struct.pack(">I", 3))
        for data in options:
            client.writer.write(data)
            await client.option_reply()
        client.writer.write(option(NbdOption.EXPORT_NAME))
        await client.reader.readexactly(10)
        return client

    async def option_reply(self) -> int:
        """Return the last reply to an option."""
        while True:
            _, _, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            await self.reader.readexactly(length)
            if kind == 1 or kind >= 1 << 31:
                return int(kind)

    async def error_of(self, data: bytes) -> int:
        """Send a request and return the error of its reply without data."""
        self.writer.write(data)
        magic, error, cookie = struct.unpack(">IIQ", await self.reader.readexactly(16))
        assert (magic, cookie) == (0x67446698, 7)
        return int(error)

    async def read(self, offset: int, length: int) -> bytes | int:
        error = await self.error_of(request(0, offset, length))
        return error or await self.reader.readexactly(length)

    async def chunk(self) -> tuple[int, int, bytes]:
        """Return flags, type and content of the next chunk."""
        magic, flags, kind, _, length = struct.unpack(">IHHQI", await self.reader.readexactly(20))
        assert magic == 0x668E33EF
        return flags, kind, await self.reader.readexactly(length)

    def close(self) -> None:
        self.writer.close()


def with_client(path: Path, check: Callable[[Client], Awaitable[None]], *options: bytes) -> None:
    async def main() -> None:
        async with running(path) as socket_path:
            client = await Client.connect(socket_path, *options)
            await check(client)
            client.close()

    asyncio.run(main())


STRUCTURED = (
    option(NbdOption.STRUCTURED_REPLY),
    option(NbdOption.SET_META_CONTEXT, context_query("", "base:allocation")),
    option(NbdOption.INFO, info_query("")),
)


def test_any_range_can_be_read(made: MadeImage, path: Path) -> None:
    raw = raw_of(made)

    async def check(client: Client) -> None:
        for offset, length in ((0, 1), (BLOCK_BYTES - 1, 2), (100, 9 * BLOCK_BYTES), (len(raw) - 5, 5)):
            assert await client.read(offset, length) == raw[offset : offset + length]

    with_client(path, check)


def test_reads_outside_and_changes_are_refused_and_the_connection_lives(made: MadeImage, path: Path) -> None:
    size = len(made.raw)

    async def check(client: Client) -> None:
        for offset, length in ((size, 1), (size - 1, 2), (2**64 - 1, 2**32 - 1), (0, 0)):
            assert await client.read(offset, length) == 22
        assert await client.error_of(request(1, 0, 512) + bytes(512)) == 1  # WRITE: EPERM
        for command in (4, 6):  # TRIM, WRITE_ZEROES
            assert await client.error_of(request(command, 0, 512)) == 1
        assert await client.error_of(request(99, 0, 512)) == 22
        assert await client.error_of(request(0, 0, 512, flags=16)) == 22
        assert await client.error_of(request(7, 0, 512)) == 22  # no context was selected
        assert await client.error_of(request(3, 0, 0)) == 0  # FLUSH
        assert await client.read(0, 10) == made.raw[:10]

    with_client(path, check)


def test_structured_reads_have_holes_and_whole_chunks_on_demand(made: MadeImage, path: Path) -> None:
    raw = raw_of(made)

    async def check(client: Client) -> None:
        client.writer.write(request(0, BLOCK_BYTES, 5 * BLOCK_BYTES))
        chunks = [await client.chunk() for _ in range(4)]
        assert [kind for _, kind, _ in chunks] == [1, 2, 1, 0]
        assert chunks[0][2] == struct.pack(">Q", BLOCK_BYTES) + raw[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert chunks[1][2] == struct.pack(">QI", 2 * BLOCK_BYTES, 3 * BLOCK_BYTES)
        assert [flags for flags, _, _ in chunks] == [0, 0, 0, 1]
        client.writer.write(request(0, BLOCK_BYTES, 5 * BLOCK_BYTES, flags=4))
        flags, kind, content = await client.chunk()
        assert (flags, kind) == (1, 1)
        assert content == struct.pack(">Q", BLOCK_BYTES) + raw[BLOCK_BYTES : 6 * BLOCK_BYTES]
        client.writer.write(request(7, BLOCK_BYTES + 1, 4 * BLOCK_BYTES, flags=8))
        assert (await client.chunk())[2] == struct.pack(">III", 1, BLOCK_BYTES - 1, Allocation.DATA)

    with_client(path, check, *STRUCTURED)


def test_too_long_read_is_refused(tmp_path: Path) -> None:
    image = make_image("z" * 600).write(tmp_path / "long.dci")

    async def check(client: Client) -> None:
        assert await client.read(0, REQUEST_BYTES_MAX + 1) == 75
        assert await client.read(0, 100) == bytes(100)

    with_client(image, check)


@pytest.mark.parametrize(
    "data",
    [
        bytes(28),
        request(1, 0, REQUEST_BYTES_MAX + 1),
    ],
    ids=["no request", "endless write"],
)
def test_client_that_breaks_the_protocol_is_disconnected_and_others_are_served(
    made: MadeImage, path: Path, data: bytes
) -> None:
    async def main() -> None:
        async with running(path) as socket_path:
            bad, good = await Client.connect(socket_path), await Client.connect(socket_path)
            bad.writer.write(data)
            assert await bad.reader.read() == b""
            assert await good.read(0, 10) == made.raw[:10]
            bad.close()
            good.close()

    asyncio.run(main())


def test_clients_beyond_the_limit_are_disconnected(
    made: MadeImage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_server, "CONNECTIONS_MAX", 2)

    async def main() -> None:
        async with running(path) as socket_path:
            clients = [await Client.connect(socket_path) for _ in range(2)]
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            assert await reader.read() == b""
            writer.close()
            assert await clients[1].read(0, 10) == made.raw[:10]
            for client in clients:
                client.close()

    asyncio.run(main())


def test_replies_in_flight_are_bounded(tmp_path: Path) -> None:
    """Requests beyond the limit must wait in the socket, and not as replies in this program's memory."""
    made = make_image("r" * 64)
    image_path = made.write(tmp_path / "big.dci")
    running_count = running_count_max = 0

    class Counting(NbdServer):
        async def read(self, block: int) -> bytes | memoryview:
            nonlocal running_count, running_count_max
            running_count += 1
            running_count_max = max(running_count, running_count_max)
            try:
                return await super().read(block)
            finally:
                running_count -= 1

    async def main() -> None:
        async with running(image_path, server_class=Counting) as socket_path:
            client = await Client.connect(socket_path)
            client.writer.write(request(0, 0, len(made.raw)) * 40)
            for _ in range(40):
                assert struct.unpack(">IIQ", await client.reader.readexactly(16))[1] == 0
                assert await client.reader.readexactly(len(made.raw)) == made.raw
            client.close()

    asyncio.run(main())
    assert 64 <= running_count_max <= REQUEST_BYTES_MAX // BLOCK_BYTES


def test_cache_is_bounded_and_decodes_a_block_once(
    made: MadeImage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    decoded: list[int] = []

    class Counting(VerifiedBlocks):
        def read(self, block: int, buffer: memoryview | None = None) -> bytes | memoryview:
            decoded.append(block)
            return super().read(block, buffer)

    async def main(cache: BlockCache) -> None:
        await asyncio.gather(*(cache.read(0) for _ in range(20)))
        assert decoded == [0]
        for block in (1, 5, 6):
            await cache.read(block)
        assert cache.kept_bytes <= 2 * BLOCK_BYTES
        await cache.read(6)
        assert decoded == [0, 1, 5, 6]
        await cache.read(0)
        assert decoded == [0, 1, 5, 6, 0]

    with ImageFile.open(path) as image, ThreadPoolExecutor(2) as executor:
        asyncio.run(main(BlockCache(Counting(image), executor, limit_bytes=2 * BLOCK_BYTES)))


def test_socket_is_private_and_never_another_programs(tmp_path: Path) -> None:
    path = tmp_path / "nbd"
    with listening_socket(path, name="nbd"):
        assert path.stat().st_mode & 0o777 == 0o600
        with (
            pytest.raises(AddressInUseError, match="another program listens"),
            listening_socket(path, name=""),
        ):
            pass
    assert not path.exists()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as a killed program leaves it
    with listening_socket(path, name="nbd"):
        pass
    path.write_text("a file")
    with pytest.raises(AddressInUseError, match="isn't a socket"), listening_socket(path, name="nbd"):
        pass
    assert path.read_text() == "a file"
