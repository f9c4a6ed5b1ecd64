"""The secrets of one run of a sender: the group's keys, and the key that signs its control messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.constants import RUN_SECRET_BYTES
from protocol.model.session_records import CastParameters
from protocol.trust.group_keys import control_key_of, derive_group_keys
from protocol.wire.control_codec import ControlSigner

_SEED_BYTES: Final = 32
"""Ed25519's private key (RFC 8032 section 5.1.5)."""


class SenderRun:
    """One run, named by the incarnation in its parameters.

    Attributes:
        keys: keys that every receiver gets when it joins.
        control_key: public key of the control messages, which every receiver gets as well.
        signer: signs the control messages.
    """

    def __init__(self, parameters: CastParameters, secrets: Callable[[int], bytes]) -> None:
        """Draw new keys; ``secrets`` returns unpredictable bytes."""
        seed = secrets(_SEED_BYTES)
        self.keys = derive_group_keys(parameters, secrets(RUN_SECRET_BYTES))
        self.control_key = control_key_of(seed)
        self.signer = ControlSigner(cast_id=parameters.cast_id, tag_key=self.keys.control_tag, seed=seed)
