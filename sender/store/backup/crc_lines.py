"""Files of JSON lines that say themselves whether they are whole: ``CRC32 JSON``."""

from __future__ import annotations

import json
import os
import zlib


def pack_line(data: object) -> bytes:
    """One line."""
    body = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def unpack_line(line: bytes) -> object:
    """What a line says; None if it isn't as it was written."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        data: object = json.loads(body.decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return data


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however little the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
