"""The commands that an operator pastes on a machine to enrol it."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Iterable
from datetime import datetime

from protocol.errors import ConfigurationError
from protocol.trust.minisign import PublicKey
from sender.identity.signing_keys import default_key_path, public_key_path


def token_name(room_id: str | None, now: datetime) -> str:
    """Return a name for a token that no other token has."""
    return f"enrol {room_id or 'all rooms'} {now:%Y-%m-%dT%H:%M:%S}"


def enrolment_commands(server: str, pin: str, secret: str, trust_keys: Iterable[str]) -> str:
    """Return the commands; the token is in a file, since every user of a machine can read its command lines."""
    keys = "".join(f" --trust-key {key}" for key in trust_keys)
    trust = f" --pin {pin}" if urllib.parse.urlsplit(server).scheme == "https" else ""
    return (
        f"umask 077; printf '%s\\n' {shlex.quote(secret)} > enrol.token\n"
        f"diskcast-agent run --server {shlex.quote(server)}{trust} --token-file enrol.token "
        f"--interface eth0 --target auto{keys}"
    )


def known_signers(of_daemon: Iterable[str]) -> list[str]:
    """Return the keys that a new agent should trust: those of the daemon's machine, and this user's own."""
    keys = list(of_daemon)
    try:
        own = PublicKey.parse(public_key_path(default_key_path()).read_text(encoding="ascii")).text
    except (OSError, ValueError, ConfigurationError):
        return keys
    return keys if own in keys else [*keys, own]
