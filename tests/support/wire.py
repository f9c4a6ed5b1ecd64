"""Datagrams for tests that play one side of the wire, and the secrets of a grant."""

from __future__ import annotations

from protocol.constants import GRTT_INITIAL_S
from protocol.model.cast_state import CastState
from protocol.sending.sender_session import SenderSession
from protocol.wire.control_codec import ControlMessage, ControlSigner
from protocol.wire.messages import Announce

GRANT_SECRETS: dict[str, object] = {
    "run_secret": bytes(range(32)),
    "control_key": bytes(range(32, 64)),
    "next_sequence": 2**32 + 7,
    "next_counter": 3,
}
"""Fields of a grant of which only the presence matters."""


def run_secrets(session: SenderSession) -> dict[str, object]:
    """Return the fields of a grant with which a receiver can follow ``session``."""
    run = session._run
    return {
        "run_secret": run.keys.secret,
        "control_key": run.control_key,
        "next_sequence": session._transmission.next_sequence,
        "next_counter": run.signer.next_counter,
    }


def forged(message: ControlMessage, *, cast_id: int, counter: int = 1) -> bytes:
    """Return a control datagram of somebody without the keys of a group."""
    signer = ControlSigner(cast_id=cast_id, tag_key=b"f" * 32, seed=b"f" * 32)
    signer.next_counter = counter
    return signer.encode(message)


def announcement(**changes: object) -> Announce:
    """Return an ANNOUNCE with every field in its range."""
    fields = {
        "incarnation": 1, "state": CastState.GATHERING, "image_id": bytes(32), "image_name": "made",
        "control_url": "http://10.0.0.2:7411", "symbol_bytes": 1440, "raw_bytes": 1, "receiver_count": 0,
        "rate_bytes_per_s": 0, "next_sequence": 0, "grtt_us": int(GRTT_INITIAL_S * 1e6), "report_interval_ms": 100,
        "sent_at_us": 0,
    }  # fmt: skip
    return Announce(**(fields | changes))  # type: ignore[arg-type]
