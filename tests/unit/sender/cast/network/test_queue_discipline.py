"""The kernel's answer about queue disciplines: if it were misread, the doctor would be wrong about fq."""

from __future__ import annotations

import socket
import struct

from sender.cast.network.queue_discipline import parse_answer, queue_disciplines

ROOT = 0xFFFF_FFFF


def row(index: int, parent: int, kind: bytes, *, message_type: int = 36) -> bytes:
    """Return an RTM_NEWQDISC in the layout of linux/rtnetlink.h: kind, an attribute of options, one of odd length."""
    kind_attribute = struct.pack("=HH", 4 + len(kind) + 1, 1) + kind + b"\0"
    attributes = struct.pack("=HHI", 8, 2, 7) + kind_attribute.ljust(-(-len(kind_attribute) // 4) * 4, b"\0")
    attributes += struct.pack("=HHB3x", 5, 12, 0)
    body = struct.pack("=B3xiIII", 0, index, 0x8001_0000, parent, 2) + attributes
    return struct.pack("=IHHII", 16 + len(body), message_type, 2, 1, 77) + body


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 77, 0)


def test_an_answer_is_parsed_to_its_end() -> None:
    rows, complete = parse_answer(row(1, ROOT, b"noqueue") + row(2, ROOT, b"mq") + row(2, 0x8001_0001, b"fq"))
    assert not complete
    assert [(found.interface_index, found.parent, found.kind) for found in rows] == [
        (1, ROOT, "noqueue"),
        (2, ROOT, "mq"),
        (2, 0x8001_0001, "fq"),
    ]
    assert parse_answer(DONE) == ([], True)
    assert parse_answer(row(3, ROOT, b"fq") + DONE)[1]


def test_an_error_ends_the_answer_and_other_messages_are_skipped() -> None:
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 77, -1) + bytes(16)
    assert parse_answer(refusal) == ([], True)
    rows, complete = parse_answer(row(4, ROOT, b"htb", message_type=16) + row(4, ROOT, b"fq"))
    assert ([found.kind for found in rows], complete) == (["fq"], False)


def test_this_machine_answers() -> None:
    assert queue_disciplines(socket.if_nametoindex("lo")) == ("noqueue",)
    assert queue_disciplines(2**31 - 1) == ()
