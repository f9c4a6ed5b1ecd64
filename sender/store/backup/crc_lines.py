"""Files of JSON lines with a checksum each: ``CRC32 JSON``."""

from __future__ import annotations

import json
import os
import zlib


def pack_line(data: object) -> bytes:
    """Return ``data`` as a line."""
    body = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def unpack_line(line: bytes) -> object:
    """Return the data of a line; None for a damaged line."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        data: object = json.loads(body.decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return data


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, in as many calls as necessary."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
