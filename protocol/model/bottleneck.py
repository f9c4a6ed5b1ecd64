"""The bottleneck of a cast: the answer to "why is it slow?"."""

from __future__ import annotations

import dataclasses
import enum

from protocol.model.session_records import ReceiverId


class Cause(enum.StrEnum):
    """Cause that limits the rate. The first four are a receiver's, in REPORT's order."""

    NETWORK = "network"
    """The path to the receivers carries no more."""
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
    """The operator's limit, or the program's own."""
    NONE = "none"
    """Nothing: the rate is still climbing, or there is nothing to send."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bottleneck:
    """The cause that limits the rate and, if one receiver is responsible, its id."""

    cause: Cause
    receiver_id: ReceiverId | None = None


NO_BOTTLENECK = Bottleneck(Cause.NONE)
