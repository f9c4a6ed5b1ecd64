"""The directory of trusted keys on this machine: one ``.pub`` file for each key."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.minisign import KEY_FILE_BYTES_MAX
from protocol.trust.trusted_keys import TRUSTED_KEYS_MAX, TrustedKey

TRUSTED_KEYS_DIRECTORY: Final = Path("/etc/diskcast/trusted-keys.d")

KEY_FILE_SUFFIX: Final = ".pub"


def trusted_key_paths(directory: Path) -> list[Path]:
    """Return the key files of a directory, by name; none if there is no such directory.

    Raises:
        ConfigurationError: the directory can't be read, or has too many files.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == KEY_FILE_SUFFIX)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"can't read the trusted keys in {directory}: {error.strerror}") from error
    if len(paths) > TRUSTED_KEYS_MAX:
        raise ConfigurationError(
            f"{directory} has {len(paths)} keys, at most {TRUSTED_KEYS_MAX} are allowed: remove old ones"
        )
    return paths


def read_trusted_key(path: Path) -> TrustedKey:
    """Read a key file, which only root or this user may be able to change.

    Raises:
        ConfigurationError: it can't be read, isn't a public key, or other users may change it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(KEY_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigurationError(f"can't read the trusted key {path}: {error.strerror}") from error
    # A user who may replace a trusted key decides about the content of this machine's disks.
    if stat.S_IMODE(status.st_mode) & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"other users may change the trusted key {path}: run chmod go-w {path}, and chown it to root"
        )
    return TrustedKey.parse(text, path.stem)


def load_trusted_keys(directory: Path) -> list[TrustedKey]:
    """Return the keys of a directory.

    A file that can't be used is an error: it may be the one that revokes a key.

    Raises:
        ConfigurationError: as :func:`trusted_key_paths` and :func:`read_trusted_key` raise.
    """
    return [read_trusted_key(path) for path in trusted_key_paths(directory)]
