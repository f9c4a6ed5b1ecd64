"""The commands that an operator pastes on a machine to enrol it."""

from __future__ import annotations

import shlex
import urllib.parse
from datetime import datetime


def token_name(room_id: str | None, now: datetime) -> str:
    """Return a name for a token that no other token has."""
    return f"enrol {room_id or 'all rooms'} {now:%Y-%m-%dT%H:%M:%S}"


def enrolment_commands(server: str, pin: str, secret: str) -> str:
    """Return the commands; the token is in a file, since every user of a machine can read its command lines."""
    trust = f" --pin {pin}" if urllib.parse.urlsplit(server).scheme == "https" else ""
    return (
        f"umask 077; printf '%s\\n' {shlex.quote(secret)} > enrol.token\n"
        f"diskcast-agent run --server {shlex.quote(server)}{trust} --token-file enrol.token "
        "--interface eth0 --target auto"
    )
