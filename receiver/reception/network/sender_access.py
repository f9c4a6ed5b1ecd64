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
        signer: the part of the join code that names the image's signer; empty without one.
    """

    trust: PeerTrust
    bearer: str = dataclasses.field(default="", repr=False, compare=False)
    signer: str = ""

    @classmethod
    def of_code(cls, code: JoinCode) -> SenderAccess:
        """Return the access that a join code gives."""
        return cls(PeerTrust(pins=(code.pin_prefix,)), code.secret, code.signer)
