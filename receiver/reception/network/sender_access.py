"""The way into a cast: the certificate that its sender must show, and the bearer that it gets."""

from __future__ import annotations

import dataclasses

from protocol.program.peer_trust import PeerTrust
from protocol.trust.join_code import JoinCode


@dataclasses.dataclass(frozen=True, slots=True)
class SenderAccess:
    """The way into a cast.

    Attributes:
        trust: certificates that are accepted.
        bearer: join secret or ticket; empty for an open cast. A renewed one leads to the same cast, so it doesn't
            count in comparisons.
    """

    trust: PeerTrust
    bearer: str = dataclasses.field(default="", repr=False, compare=False)

    @classmethod
    def of_code(cls, code: JoinCode) -> SenderAccess:
        """Return the access that a join code gives."""
        return cls(PeerTrust(pins=(code.pin_prefix,)), code.secret)
