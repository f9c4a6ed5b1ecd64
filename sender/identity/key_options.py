"""Options about keys: a secret key and its passphrase, from a file or the terminal; a public key; an expiry."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from protocol.errors import ConfigurationError
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import parse_time
from sender.identity.signing_keys import AskPassphrase

PASSPHRASE_FILE_BYTES_MAX: Final = 4096
"""A passphrase has at most 1 KiB; anything longer is another file by mistake."""

PASSPHRASE_FILE_OPTION: Final = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="File with the key's passphrase in its first line; - for stdin.",
)

_KEY_OPTION: Final = click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    metavar="FILE.key",
    show_default="~/.config/diskcast/signing.key",
    help="Secret key to sign with.",
)


def signing_key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--key`` and ``--passphrase-file``; the command gets ``key_path`` and ``ask_passphrase``."""

    @functools.wraps(function)
    def with_key(*args: object, passphrase_file: Path | None, **kwargs: object) -> object:
        return function(*args, ask_passphrase=passphrase_source(passphrase_file), **kwargs)

    decorated: Callable[..., Any] = _KEY_OPTION(PASSPHRASE_FILE_OPTION(with_key))
    return decorated


def passphrase_source(file: Path | None) -> AskPassphrase:
    """Return a function that reads the passphrase from ``file``, or asks on the terminal without one."""

    def ask(path: str) -> str:
        if file is not None:
            return read_passphrase(file)
        if not sys.stdin.isatty():
            raise ConfigurationError(
                f"{path} needs a passphrase, and there is no terminal to ask on: give --passphrase-file"
            )
        return prompt_passphrase(f"Passphrase of {path}")

    return ask


def read_passphrase(file: Path) -> str:
    """Return the first line of a file, or of stdin for ``-``.

    Raises:
        ConfigurationError: it can't be read, or isn't text.
    """
    try:
        with click.open_file(str(file), encoding="utf-8") as stream:
            text: str = stream.read(PASSPHRASE_FILE_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
        raise ConfigurationError(f"can't read the passphrase from {file}: {reason}") from error
    if len(text) > PASSPHRASE_FILE_BYTES_MAX:
        raise ConfigurationError(f"{file} is too long for a passphrase: give a file with one line")
    return text.partition("\n")[0]


def prompt_passphrase(question: str, *, confirm: bool = False) -> str:
    """Ask on the terminal without echo; the answer may be empty."""
    answer: str = click.prompt(
        question, default="", hide_input=True, show_default=False, err=True, confirmation_prompt=confirm
    )
    return answer


def parse_time_option(text: str | None) -> datetime.datetime | None:
    """Return the time of ``--not-after``: a date, or a time in UTC, or ``never``.

    Raises:
        ConfigurationError: it is neither.
    """
    if text is None:
        return None
    for candidate in (text, f"{text}T00:00:00Z"):
        try:
            return parse_time(candidate)
        except ValueError:
            continue
    raise ConfigurationError(f"{text!r} isn't a time: write 2027-12-31, or 2027-12-31T12:00:00Z, or never")


def read_public_key(text: str) -> tuple[PublicKey, str]:
    """Return the key of a file or of a line, and the name that the file suggests.

    Raises:
        ConfigurationError: it is neither.
    """
    path = Path(text)
    if text.startswith("RW") and not path.exists():
        return PublicKey.parse(text), ""
    try:
        return PublicKey.parse(path.read_text(encoding="utf-8", errors="replace")), path.stem
    except OSError as error:
        raise ConfigurationError(
            f"can't read the public key {text}: {error.strerror}; give a .pub file or the line that starts with RW"
        ) from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{text}: {error}") from error
