"""The credentials of an agent: its token for enrolment, and the secret of its machine.

The secret is kept in memory and, if the agent has a state directory, in a file that only its user can read. A netbooted
machine without one enrols again at each boot.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from protocol.control.check_in import MACHINE_SECRET_BYTES_MAX
from protocol.errors import ConfigurationError

SECRET_FILE: Final = "machine-secret"  # noqa: S105 - a file's name


class MachineCredentials:
    """The bearer of check-ins."""

    def __init__(self, token: str, state_directory: Path | None = None) -> None:
        """Use the secret in the state directory, or else the token.

        Raises:
            ConfigurationError: the directory can't be used, or other users can read the secret.
        """
        self._token = token
        self._path = None if state_directory is None else state_directory / SECRET_FILE
        self._secret = "" if self._path is None else _read_secret(self._path)

    @property
    def bearer(self) -> str:
        """The machine's secret; without one the token, which is empty if the daemon needs none."""
        return self._secret or self._token

    @property
    def enrolled(self) -> bool:
        """True if this machine has a secret."""
        return bool(self._secret)

    def use_token(self, token: str) -> None:
        """Enrol with this token instead of the first one."""
        self._token = token

    def keep(self, secret: str) -> str:
        """Use this secret from now on.

        Returns:
            The reason if it couldn't be written to the state directory; empty on success.
        """
        self._secret = secret
        if self._path is None:
            return ""
        try:
            _write_secret(self._path, secret)
        except OSError as error:
            return f"cannot write {self._path}: {error.strerror}; this machine enrols again after a restart"
        return ""

    def drop(self) -> None:
        """Forget the secret, which the daemon no longer accepts."""
        self._secret = ""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _read_secret(path: Path) -> str:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MACHINE_SECRET_BYTES_MAX + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigurationError(
            f"cannot use {path}: {error.strerror}; check --state-directory and its permissions"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(
            f"other users can read this machine's secret in {path}: run 'chmod 600 {path}', and revoke the machine if "
            "one of them may have read it"
        )
    secret = content.decode("ascii", errors="replace").strip()
    usable = 0 < len(secret) <= MACHINE_SECRET_BYTES_MAX and all("!" <= letter <= "~" for letter in secret)
    return secret if usable else ""  # a power cut while it was written: the machine enrols again


def _write_secret(path: Path, secret: str) -> None:
    """Replace the file whole, readable by its user only from the first moment."""
    draft = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secret.encode("ascii") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
