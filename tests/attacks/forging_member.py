"""A member of a cast that forges symbols in the sender's name.

``python -m tests.attacks.forging_member SHARE BLOCK receive …`` is an ordinary ``diskcast-agent receive``, and beside
it a thread that uses the group's keys: it forges SHARE (0..1) of the symbols that it sees, or, with a BLOCK of 0 or
more, symbols of that block all the time. Forgeries claim numbers that the sender will use soon, so they come first.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

import numpy as np

from protocol.constants import DATA_HEADER_BYTES
from protocol.model.session_records import JoinGrant
from protocol.receiving import receiver_session
from protocol.trust.group_keys import derive_group_keys
from protocol.wire.batch import header_view
from protocol.wire.data_tags import DataTagger, SequenceWindow
from receiver.cli import main
from tests.attacks.raw_frames import CastFrame, RawSocket

_AHEAD_MIN, _AHEAD_MAX = 200, 4000
_FLOOD_PER_S = 2000


class Forger:
    """The thread that forges with the keys of a grant."""

    def __init__(self, grant: JoinGrant, share: float, block: int) -> None:
        self._symbol_bytes = grant.parameters.symbol_bytes
        self._share, self._block = share, block
        self._tagger = DataTagger(derive_group_keys(grant.parameters, grant.run_secret).data_tag)
        self._window = SequenceWindow(grant.next_sequence)
        self._socket = RawSocket()
        self._rng = random.Random(1)
        self._forged_count = 0

    def run(self) -> None:
        """Forge until the program ends."""
        seen = 0
        last_report_s = flooded_s = time.monotonic()
        for frame in self._socket.frames():
            if not frame.is_data:
                continue
            frames = frame.symbols(self._symbol_bytes)
            frames = frames[header_view(frames)["object"] == 1]
            if frames.shape[0] == 0:
                continue
            seen += frames.shape[0]
            now_s = time.monotonic()
            if self._block >= 0:
                due = int((now_s - flooded_s) * _FLOOD_PER_S)
                flooded_s += due / _FLOOD_PER_S
            else:
                due = int(seen * self._share) - self._forged_count
            for _ in range(due):
                self._forge(frame, frames[self._rng.randrange(frames.shape[0])].copy())
            if now_s - last_report_s > 0.05:
                last_report_s = now_s
                event = {"event": "forged", "seen": seen, "forged": self._forged_count}
                sys.stdout.write(json.dumps(event) + "\n")  # whole: the agent writes lines of its own
                sys.stdout.flush()

    def _forge(self, frame: CastFrame, copy: np.ndarray) -> None:
        rng, row = self._rng, copy[None, :]
        header = header_view(row)
        sequence = self._window.extend(header["sequence"]) + rng.randint(_AHEAD_MIN, _AHEAD_MAX)
        header["sequence"] = sequence & 0xFFFFFFFF
        header["tag"] = self._tagger.tags(sequence)
        header["flags"] = rng.randint(0, 1)
        header["block"] = self._block if self._block >= 0 else int(header["block"][0]) + rng.randint(0, 3)
        header["esi"] = rng.randrange(int(header["k"][0]))
        copy[DATA_HEADER_BYTES:] = np.frombuffer(rng.randbytes(self._symbol_bytes), np.uint8)
        self._socket.send(frame.around(copy.tobytes(), self._socket.hardware_address))
        self._forged_count += 1


def _forge_beside(share: float, block: int) -> None:
    """Start a forger with each session of the agent."""
    create = receiver_session.ReceiverSession.__init__

    def created(session: receiver_session.ReceiverSession, grant: JoinGrant, **options: Any) -> None:
        create(session, grant, **options)
        threading.Thread(target=Forger(grant, share, block).run, daemon=True).start()

    receiver_session.ReceiverSession.__init__ = created  # type: ignore[method-assign]


if __name__ == "__main__":
    _forge_beside(float(sys.argv[1]), int(sys.argv[2]))
    sys.argv[1:3] = []
    main()
