"""TFTP: a failure would hang machines at their loader, or read files that nobody should have."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from sender.netboot.serve.tftp_codec import (
    Acknowledgement,
    ErrorPacket,
    ReadRequest,
    TftpError,
    decode_tftp_untrusted,
    encode_data,
    encode_error,
    encode_option_ack,
)
from sender.netboot.serve.tftp_transfer import (
    RETRANSMIT_COUNT_MAX,
    WINDOW_BLOCKS_MAX,
    TftpTransfer,
    TransferState,
)

MTU = 1500
IPXE_READ = b"\0\x01undionly.kpxe\0octet\0blksize\x001432\0tsize\x000\0"


def test_a_read_request_of_firmware_is_understood() -> None:
    assert decode_tftp_untrusted(IPXE_READ) == ReadRequest("undionly.kpxe", {"blksize": "1432", "tsize": "0"})
    assert decode_tftp_untrusted(b"\0\x01grub/grub.cfg\0OCTET\0") == ReadRequest("grub/grub.cfg", {})
    assert decode_tftp_untrusted(b"\0\x04\x12\x34") == Acknowledgement(0x1234)
    assert decode_tftp_untrusted(b"\0\x05\0\0aborted\0") == ErrorPacket(0, "aborted")


def test_packets_have_the_layout_of_the_standards() -> None:
    assert encode_data(65537, b"ab") == b"\0\x03\0\x01ab"
    assert encode_option_ack({"blksize": 1428, "tsize": 7}) == b"\0\x06blksize\x001428\0tsize\x007\0"
    assert encode_error(TftpError.FILE_NOT_FOUND, "no such file") == b"\0\x05\0\x01no such file\0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\x02a\0octet\0",
        b"\0\x01\0octet\0",
        b"\0\x01a\0mail\0",
        b"\0\x01a\xff\0octet\0",
        b"\0\x01a\nb\0octet\0",
        b"\0\x01" + b"a" * 300 + b"\0octet\0",
        b"\0\x03\0\x01data",
        b"\0\x01a",
        b"\0\x09\0\0",
        b"\0\x01" + b"a" * 2000,
    ],
)
def test_everything_but_reading_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_tftp_untrusted(data)


class Client:
    """A client of RFC 7440: keeps blocks in order, and acknowledges the end of a window or a gap."""

    def __init__(self, options: dict[str, str], *, strict_window: int) -> None:
        self.content = b""
        self.block = 0
        self.block_bytes = 512
        self.window = strict_window
        self.complete = False
        self._options = options
        self._in_window = 0

    def receive(self, packet: bytes) -> int | None:
        """Return the block to acknowledge, None for none."""
        opcode, number = struct.unpack_from("!HH", packet)
        if opcode == 6:
            words = packet[2:].split(b"\0")
            accepted = dict(zip(words[::2], words[1::2], strict=False))
            self.block_bytes = int(accepted.get(b"blksize", b"512"))
            self.window = int(accepted.get(b"windowsize", b"1"))
            return 0 if self.block == 0 else None
        if number != (self.block + 1) % 65536:
            self._in_window = 0
            return self.block % 65536
        self.block += 1
        self._in_window += 1
        self.content += packet[4:]
        self.complete = len(packet) - 4 < self.block_bytes
        if self.complete or self._in_window == self.window:
            self._in_window = 0
            return number
        return None


def exchange(
    size_bytes: int, options: dict[str, str], loss: float, seed: int
) -> tuple[Client, TftpTransfer, bytes]:
    content = random.Random(size_bytes).randbytes(size_bytes)
    pick = random.Random(seed)
    now = 0.0
    transfer = TftpTransfer(
        size_bytes, lambda at, count: content[at : at + count], options, mtu_bytes=MTU, now=now
    )
    client = Client(options, strict_window=1)
    flight = transfer.start()
    while not transfer.ended:
        answers: list[bytes] = []
        for packet in flight:
            assert len(packet) <= MTU - 28
            if (
                pick.random() >= loss
                and (block := client.receive(packet)) is not None
                and pick.random() >= loss
            ):
                answers += transfer.acknowledge(block, now)
        flight = answers
        if not flight and not transfer.ended:
            now = transfer.deadline
            flight = transfer.timeout(now)
    return client, transfer, content


OPTIONS = [
    {},
    {"blksize": "1468", "tsize": "0"},
    {"blksize": "65464"},
    {"windowsize": "16", "blksize": "1432"},
    {"windowsize": "65535"},
    {"timeout": "3", "unknown": "x", "blksize": "abc"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 513, 100_000])
def test_a_file_arrives_whole(options: dict[str, str], size_bytes: int) -> None:
    client, transfer, content = exchange(size_bytes, options, 0.0, 1)
    assert client.content == content
    assert client.complete
    assert transfer.state is TransferState.COMPLETE
    assert transfer.acknowledged_bytes == size_bytes
    assert not transfer.retransmission_count


def test_block_numbers_wrap_around() -> None:
    """A file of more than 65535 blocks is an initrd with small blocks."""
    client, transfer, content = exchange(70_000 * 8 + 3, {"blksize": "8", "windowsize": "32"}, 0.0, 1)
    assert client.content == content
    assert transfer.state is TransferState.COMPLETE


@given(
    options=st.sampled_from(OPTIONS),
    size_bytes=st.integers(0, 40_000),
    loss=st.floats(0, 0.2),
    seed=st.integers(0, 999),
)
def test_a_file_that_arrives_is_whole_whatever_is_lost(
    options: dict[str, str], size_bytes: int, loss: float, seed: int
) -> None:
    client, transfer, content = exchange(size_bytes, options, loss, seed)
    if transfer.state is TransferState.COMPLETE:
        assert client.content == content
    else:
        assert client.content == content[: len(client.content)]


def test_a_silent_client_ends_its_transfer() -> None:
    transfer = TftpTransfer(5000, lambda _at, count: b"x" * count, {"tsize": "0"}, mtu_bytes=MTU, now=0.0)
    first = transfer.start()
    sent = 1
    while not transfer.ended:
        assert not transfer.timeout(transfer.deadline - 0.01)
        again = transfer.timeout(transfer.deadline)
        assert again in ([], first)
        sent += bool(again)
    assert transfer.state is TransferState.FAILED
    assert sent == RETRANSMIT_COUNT_MAX + 1


def test_a_repeated_acknowledgement_sends_nothing_twice() -> None:
    """Answering it would double every packet from then on: the Sorcerer's Apprentice bug (RFC 1123, 4.2.3.1)."""
    transfer = TftpTransfer(5000, lambda _at, count: b"x" * count, {}, mtu_bytes=MTU, now=0.0)
    transfer.start()
    assert len(transfer.acknowledge(1, 0.1)) == 1
    assert transfer.acknowledge(1, 0.2) == []
    assert transfer.acknowledge(0, 0.2) == []
    assert transfer.acknowledge(9, 0.2) == []


def test_no_client_gets_a_window_beyond_the_limit() -> None:
    transfer = TftpTransfer(
        10_000_000, lambda _at, count: b"x" * count, {"windowsize": "65535"}, mtu_bytes=MTU, now=0.0
    )
    transfer.start()
    assert len(transfer.acknowledge(0, 0.1)) == WINDOW_BLOCKS_MAX
