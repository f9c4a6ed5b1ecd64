"""Keys and signed statements for tests; the keys are fixed, so that a failure can be seen again."""

from __future__ import annotations

import atexit
import datetime
import functools
import tempfile
from pathlib import Path

from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import ImageStatement, SignedStatement
from protocol.trust.trusted_keys import TrustedKey, TrustedKeys

NOW = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)

SIGNER = SecretKey.create(key_id=b"signer-1", seed=bytes(range(32)))
STRANGER = SecretKey.create(key_id=b"stranger", seed=bytes(range(1, 33)))
"""A key that no test's machine trusts."""

IMPOSTOR = SecretKey.create(key_id=SIGNER.public.key_id, seed=bytes(range(2, 34)))
"""Another key with the signer's id: the id is 8 bytes that anyone can choose."""

TRUSTED = TrustedKey(SIGNER.public, "signer")
KEYS = TrustedKeys([TRUSTED])


def signed(statement: ImageStatement, key: SecretKey = SIGNER) -> SignedStatement:
    """Return the statement with a signature."""
    return signed_bytes(statement.encode(), key)


def signed_bytes(statement: bytes, key: SecretKey = SIGNER) -> SignedStatement:
    """Return any bytes with a signature."""
    return SignedStatement(statement, key.sign(statement, trusted_comment="a test's").file_text())


@functools.cache
def signing_environment() -> dict[str, str]:
    """Return variables with which ``diskcast pack`` signs by :data:`SIGNER`, and agents trust it.

    The user's own configuration directory stays untouched.
    """
    directory = tempfile.TemporaryDirectory(prefix="diskcast-test-config-")
    atexit.register(directory.cleanup)
    folder = Path(directory.name) / "diskcast"
    folder.mkdir(mode=0o700)
    key = folder / "signing.key"
    key.touch(mode=0o600)
    key.write_text(SIGNER.file_text())
    (folder / "signing.pub").write_text(SIGNER.public.file_text())
    return {"XDG_CONFIG_HOME": directory.name, "DISKCAST_TRUST_KEYS": SIGNER.public.text}
