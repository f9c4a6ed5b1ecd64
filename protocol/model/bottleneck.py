"""What holds a cast's rate down, and who: the answer to "why is it slow?"."""

from __future__ import annotations

import dataclasses
import enum

from protocol.model.session_records import ReceiverId


class Cause(enum.StrEnum):
    """What sets the rate. The first four are a receiver's words, in REPORT's order."""

    NETWORK = "network"
    """The way to the receivers carries no more."""
    SOCKET = "socket"
    """A receiver's processor doesn't empty its socket fast enough."""
    DECODE = "decode"
    """A receiver's processor doesn't repair, decompress and check fast enough."""
    DISK = "disk"
    """A receiver's disk doesn't write or read back fast enough."""
    SOURCE = "source"
    """The sender's own disk doesn't read the image fast enough."""
    SENDER = "sender"
    """The sender's processor or interface doesn't send fast enough."""
    CEILING = "ceiling"
    """The operator's limit, or the program's."""
    NONE = "none"
    """Nothing: the rate is still climbing, or there is nothing to send."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bottleneck:
    """What sets the rate and, where it is one receiver's doing, which."""

    cause: Cause
    receiver_id: ReceiverId | None = None


NO_BOTTLENECK = Bottleneck(Cause.NONE)
