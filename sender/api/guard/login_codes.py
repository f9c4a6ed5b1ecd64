"""One-time codes that log a browser in: the part of the dashboard's link that ``diskcast`` prints after the ``#``.

A code is in the fragment of the address, which browsers send to nobody. It works once and expires soon, so a link in a
shell's history or a browser's is worthless.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from sender.store.records.access import Credential
from sender.store.repositories.credentials import hash_secret

CODE_LIFETIME_S: Final = 600
"""Time to open a printed link."""
CODE_PATTERN: Final = "^dcl_[A-Za-z0-9_-]{22}$"
_CODES_MAX: Final = 64
"""Unused codes; the oldest is forgotten first."""
_CODE_BYTES: Final = 16
"""128 random bits can't be guessed within ten minutes at any rate."""


class LoginCodes:
    """The unused codes of this daemon; a restart forgets them."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Have no codes; ``now`` returns monotonic seconds."""
        self._now = now
        self._codes: OrderedDict[str, tuple[Credential, float]] = OrderedDict()

    def create(self, credential: Credential) -> str:
        """Return a new code that logs in with the token of ``credential``."""
        code = f"dcl_{secrets.token_urlsafe(_CODE_BYTES)}"
        self._codes[hash_secret(code)] = (credential, self._now() + CODE_LIFETIME_S)
        while len(self._codes) > _CODES_MAX:
            self._codes.popitem(last=False)
        return code

    def redeem(self, code: str) -> Credential | None:
        """Return the credential of an unused code, which is used up by this; None for any other text."""
        credential, expires_at = self._codes.pop(hash_secret(code), (None, 0.0))
        return credential if self._now() < expires_at else None
