"""The address of the daemon on this machine, for commands that are given no ``--server``.

The daemon writes URL and pin of its API into its state directory. Commands of a user who may look into that directory
find the daemon there, and recognise it without a ``--pin``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.pin import parse_pin
from sender.config.sections import SYSTEM_STATE_DIRECTORY, default_state_directory, user_state_directory

ENDPOINT_FILE: Final = "api.json"
_BYTES_MAX: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """The API of a daemon on this machine.

    Attributes:
        url: its URL, by an address of this machine.
        pin: pin of its certificate; empty without TLS.
    """

    url: str
    pin: str


def write_local_endpoint(state: Path, endpoint: LocalEndpoint) -> None:
    """Write the address into the state directory. Both are public; without the file commands need ``--server``."""
    temporary = state / f".{ENDPOINT_FILE}.{secrets.token_hex(8)}"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(dataclasses.asdict(endpoint)) + "\n")
        temporary.replace(state / ENDPOINT_FILE)


def find_local_endpoint() -> LocalEndpoint | None:
    """Return the address of the user's daemon or else of the system's; None if neither is known."""
    return _first_endpoint((default_state_directory(), user_state_directory(), SYSTEM_STATE_DIRECTORY))


def _first_endpoint(directories: Iterable[Path]) -> LocalEndpoint | None:
    for directory in directories:
        with contextlib.suppress(OSError, ValueError, ConfigurationError):
            return _read(directory / ENDPOINT_FILE)
    return None


def _read(path: Path) -> LocalEndpoint:
    with path.open("rb") as file:
        # Nobody else may redirect the commands of this user: the file must belong to the owner of the directory.
        if os.fstat(file.fileno()).st_uid != path.parent.stat().st_uid:
            raise ValueError("foreign file")
        content = json.loads(file.read(_BYTES_MAX))
    url, pin = (content.get("url"), content.get("pin")) if isinstance(content, dict) else (None, None)
    if not isinstance(url, str) or not isinstance(pin, str):
        raise ValueError("not an endpoint")
    return LocalEndpoint(url, parse_pin(pin) if pin else "")
