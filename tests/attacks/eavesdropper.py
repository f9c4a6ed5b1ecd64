"""Record what a cast multicasts: ``python -m tests.attacks.eavesdropper FILE``, until SIGTERM."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.attacks.raw_frames import CastFrame, RawSocket


def main(path: Path) -> None:
    """Write the payload of each frame behind its length."""
    sock = RawSocket()
    with path.open("wb", buffering=0) as file:
        print(json.dumps({"event": "ready"}), flush=True)
        for frame in sock.frames():
            file.write(len(frame.payload).to_bytes(4) + frame.payload)


def recorded(path: Path) -> list[CastFrame]:
    """Return the recorded payloads, in frames without addresses."""
    content = memoryview(path.read_bytes())
    found = []
    while len(content) >= 4:
        length = int.from_bytes(content[:4])
        found.append(CastFrame(b"", b"", b"", 0, 0, bytes(content[4 : 4 + length])))
        content = content[4 + length :]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
