"""A receiver's inbox of control messages: only authentic ones of the joined run, each once and in order."""

from __future__ import annotations

from protocol.errors import WireError
from protocol.model.session_records import JoinGrant
from protocol.trust.group_keys import GroupKeys
from protocol.wire.codec import foreign_version_untrusted
from protocol.wire.control_codec import ControlMessage, ControlVerifier, control_type_untrusted
from protocol.wire.messages import Announce

_NOT_THIS_RUN = frozenset({"bad_tag", "bad_signature"})
"""Reasons for rejecting the control messages of another run, and forged ones."""


class ControlInbox:
    """Checks of control messages.

    Attributes:
        foreign_version: wire version of a program of another version that was heard on the group; None for none.
        foreign_announcement: the last datagram was an ANNOUNCE of this cast by another run, or by a forger.
    """

    def __init__(self, grant: JoinGrant, keys: GroupKeys, rejects: dict[str, int]) -> None:
        """Start after the join; ``rejects`` counts rejected datagrams by reason."""
        self.foreign_version: int | None = None
        self.foreign_announcement = False
        self._rejects = rejects
        self._verifier = ControlVerifier(
            cast_id=grant.parameters.cast_id,
            tag_key=keys.control_tag,
            control_key=grant.control_key,
            next_counter=grant.next_counter,
        )

    def open_untrusted(self, datagram: bytes) -> ControlMessage | None:
        """Return the message of a datagram; count a bad one, and return None."""
        self.foreign_announcement = False
        try:
            return self._verifier.decode_untrusted(datagram)
        except WireError as error:
            self._rejects[error.reason] = self._rejects.get(error.reason, 0) + 1
            if error.reason == "bad_version":
                self.foreign_version = foreign_version_untrusted(datagram)
            elif error.reason in _NOT_THIS_RUN:
                self.foreign_announcement = control_type_untrusted(datagram) is Announce
            return None
