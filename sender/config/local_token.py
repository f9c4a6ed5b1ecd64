"""The token of the operator who runs the daemon: a file in its state directory that only this user can read.

Programs of the same user on the same machine find it there, so nobody types a token. A daemon on the loopback address
therefore needs no exception from tokens, which every user of the machine could use.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
from pathlib import Path
from typing import Final

from sender.config.sections import SYSTEM_STATE_DIRECTORY, default_state_directory, user_state_directory

OPERATOR_TOKEN_FILE: Final = "operator-token"  # noqa: S105  a name
_TOKEN_BYTES_MAX: Final = 4096
_LISTENING: Final = "0A"
"""TCP_LISTEN in /proc/net/tcp (Linux, include/net/tcp_states.h)."""


def find_local_token(server: str) -> str | None:
    """Return the token of a daemon on this machine's loopback address that this user may read, or None.

    It is sent only to a daemon of the file's owner: while the daemon isn't running, another user of the machine could
    listen at its port and collect the token.

    Args:
        server: URL of the daemon.
    """
    try:
        parts = urllib.parse.urlsplit(server)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # the client explains it
        return None
    if port is None or not _is_loopback(host):
        return None
    users = _listening_users(port)
    directories = default_state_directory(), user_state_directory(), SYSTEM_STATE_DIRECTORY
    for directory in dict.fromkeys(directories):
        try:
            with (directory / OPERATOR_TOKEN_FILE).open("rb") as file:
                owner = os.fstat(file.fileno()).st_uid
                text = file.read(_TOKEN_BYTES_MAX).decode(errors="replace").strip()
        except OSError:
            continue
        if text and users <= {owner, 0}:
            return text
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening_users(port: int) -> set[int]:
    """Return the users whose programs listen at ``port``; those of other addresses count, too."""
    users = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                users.add(int(fields[7]))
    return users
