"""Command-line options about the images that this machine accepts, shared by ``receive`` and ``run``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from protocol.errors import ConfigurationError
from protocol.program.options import WholeNumber
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY
from protocol.trust.statement import STATEMENT_VERSION_MAX
from protocol.trust.trusted_keys import TrustedKey
from receiver.trust.accepted_images import TrustOptions

TRUST_VARIABLE: Final = "DISKCAST_TRUST_KEYS"
STATE_VARIABLE: Final = "DISKCAST_STATE_DIRECTORY"

_OPTIONS: Final = (
    click.option(
        "--trust-key",
        "trust_keys",
        multiple=True,
        envvar=TRUST_VARIABLE,
        metavar="KEY",
        help=f"Key whose images to accept: RW… or file.  [env: {TRUST_VARIABLE}]",
    ),
    click.option(
        "--trusted-keys",
        "trusted_keys_directory",
        type=click.Path(path_type=Path),
        default=TRUSTED_KEYS_DIRECTORY,
        show_default=True,
        metavar="DIR",
        help="Directory of further trusted keys.",
    ),
    click.option(
        "--allow-unsigned", is_flag=True, help="Accept images without a trusted signature; reported."
    ),
    click.option(
        "--min-version",
        "version_min",
        type=WholeNumber(0, STATEMENT_VERSION_MAX),
        default=0,
        show_default=True,
        metavar="N",
        help="Lowest signed version to accept.",
    ),
    click.option(
        "--require-tag", "tags", multiple=True, metavar="TAG", help="Tag that images must have; repeatable."
    ),
    click.option(
        "--state-directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=STATE_VARIABLE,
        metavar="DIR",
        help=f"Keep versions and secrets in DIR.  [env: {STATE_VARIABLE}]",
    ),
)


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``--trust-key`` to ``--state-directory``; the command gets them as ``trust``.

    Raises:
        ConfigurationError: when the command runs: a key is invalid.
    """

    @functools.wraps(function)
    def with_trust(
        *args: object,
        trust_keys: tuple[str, ...],
        trusted_keys_directory: Path,
        allow_unsigned: bool,
        version_min: int,
        tags: tuple[str, ...],
        state_directory: Path | None,
        **kwargs: object,
    ) -> object:
        trust = TrustOptions(
            keys=tuple(_read_key(text) for text in trust_keys),
            directory=trusted_keys_directory,
            allow_unsigned=allow_unsigned,
            version_min=version_min,
            tags=frozenset(tags),
            state_directory=state_directory,
        )
        return function(*args, trust=trust, **kwargs)

    decorated: Callable[..., Any] = with_trust
    for option in reversed(_OPTIONS):  # the last one applied is the first one in --help
        decorated = option(decorated)
    return decorated


def _read_key(text: str) -> TrustedKey:
    """Return the key of a line or a file, with the expiry that a file has."""
    path = Path(text)
    if text.startswith("RW") and not path.exists():
        return TrustedKey.parse(text, "--trust-key")
    try:
        return TrustedKey.parse(path.read_text(encoding="utf-8", errors="replace"), path.stem)
    except OSError as error:
        raise ConfigurationError(
            f"can't read the trusted key {text}: {error.strerror}; give a .pub file, or its line that starts with RW"
        ) from error
