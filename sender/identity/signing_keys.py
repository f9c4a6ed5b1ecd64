"""The key that signs images: its files, its creation at first use, and its passphrase.

The secret key is ``signing.key`` in the user's configuration directory, mode 0600, in minisign's format; the public key
is ``signing.pub`` beside it. A daemon never has one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.minisign import KEY_ID_BYTES
from protocol.trust.secret_key import SALT_BYTES, SEED_BYTES, SecretKey, is_encrypted, parse_secret_key
from sender.identity.directories import user_directory
from sender.identity.private_files import ensure_private_file, read_private_file

KEY_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"

AskPassphrase = Callable[[str], str]
"""Asks for the passphrase of a key, which the argument names; raises ConfigurationError if there is nobody to ask."""


def default_key_path() -> Path:
    """Return the path of the user's signing key.

    Raises:
        ConfigurationError: the user has no home directory.
    """
    return user_directory() / f"signing{KEY_SUFFIX}"


def public_key_path(path: Path) -> Path:
    """Return the path of the public key beside a secret one."""
    return path.with_suffix(PUBLIC_SUFFIX)


def create_signing_key(path: Path, passphrase: str) -> SecretKey:
    """Make a key and write both files.

    Raises:
        ConfigurationError: the key exists already, or its directory can't be written to.
    """
    if path.suffix == PUBLIC_SUFFIX:
        raise ConfigurationError(
            f"{path} would be the name of both keys: choose one that ends with {KEY_SUFFIX}"
        )
    key, made = (None, False) if os.path.lexists(path) else _make_unless_exists(path, passphrase)
    if key is None or not made:
        raise ConfigurationError(
            f"{path} exists, and without it nothing signs for the machines that trust it: give another name with "
            "--output, or move it away"
        )
    return key


def _make_unless_exists(path: Path, passphrase: str) -> tuple[SecretKey, bool]:
    """Make a key; return it, and False if another program made the file of that name first."""
    key = SecretKey.create(key_id=secrets.token_bytes(KEY_ID_BYTES), seed=secrets.token_bytes(SEED_BYTES))
    content = key.file_text(passphrase=passphrase, salt=secrets.token_bytes(SALT_BYTES)).encode("ascii")
    made = ensure_private_file(path, lambda: content) == content
    if made:
        write_public_key(path, key)
    return key, made


def write_public_key(path: Path, key: SecretKey) -> None:
    """Write the public key beside the secret key at ``path``.

    Raises:
        ConfigurationError: its directory can't be written to.
    """
    public = public_key_path(path)
    try:
        public.write_text(key.public.file_text(), encoding="ascii")
    except OSError as error:
        raise ConfigurationError(
            f"can't write {public}: {error.strerror}; make its directory writable for this user"
        ) from error


def load_signing_key(path: Path, ask: AskPassphrase) -> SecretKey:
    """Load a key; decrypting one takes three seconds and 1 GiB of memory, as with minisign.

    Raises:
        ConfigurationError: there is no such key, others may read it, it is damaged, or the passphrase is wrong.
    """
    try:
        text = read_private_file(path).decode("ascii", "replace")
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no signing key {path}: make one with `diskcast keygen`, or give yours with --key"
        ) from error
    try:
        return parse_secret_key(text, ask(str(path)) if is_encrypted(text) else "")
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def ensure_signing_key(path: Path | None, ask: AskPassphrase) -> tuple[SecretKey, bool]:
    """Load the key at ``path``, by default the user's own, which is made at first use, without a passphrase.

    Returns:
        The key, and whether it was made now.

    Raises:
        ConfigurationError: as :func:`load_signing_key` and :func:`create_signing_key` raise.
    """
    if path is None:
        path = default_key_path()
        if not os.path.lexists(path):
            key, made = _make_unless_exists(path, "")
            if made:
                return key, True
    return load_signing_key(path, ask), False
