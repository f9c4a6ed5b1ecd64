"""The types of values in the daemon's configuration, with their checks and errors."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from protocol.constants import MIB, RATE_BYTES_PER_S_MAX, RATE_BYTES_PER_S_MIN
from protocol.errors import ConfigurationError
from protocol.shared.units import format_rate, parse_rate_bytes_per_s, parse_size_bytes
from sender.addresses import parse_endpoint, parse_group

LISTEN_DEFAULT = "127.0.0.1:7400"
LISTEN_PORT_DEFAULT = 7400
CASTS_AT_ONCE_MAX = 64
"""Most control ports: each running cast has a sending thread and up to 400 MB of memory."""
LIST_COUNT_MAX = 100
"""Most folders, remote images, hosts or sites in the file: more belong in one folder or prefix."""
CACHE_BYTES_MIN = 64 * MIB
"""A smaller cache holds no image that is worth casting."""


def _checked(text: str, check: Callable[[str], object]) -> str:
    """Return ``text`` if the check passes; turn its ConfigurationError into a ValueError for pydantic."""
    try:
        check(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError(
            f"{text!r} isn't a valid name: use 1 to 64 letters, digits, dots, hyphens and underscores"
        )
    return text


def _listen(text: str) -> str:
    def check(value: str) -> None:
        if parse_endpoint(value, LISTEN_PORT_DEFAULT)[0] is None:
            raise ConfigurationError(
                f"{value!r} has no address: write {LISTEN_DEFAULT} for this machine only, or 0.0.0.0:7400"
            )

    return _checked(text, check)


def _group(text: str) -> str:
    return _checked(text, parse_group)


def _rate(text: str) -> str:
    rate = parse_rate_bytes_per_s(_checked(text, parse_rate_bytes_per_s))
    if not RATE_BYTES_PER_S_MIN <= rate <= RATE_BYTES_PER_S_MAX:
        low, high = format_rate(RATE_BYTES_PER_S_MIN), format_rate(RATE_BYTES_PER_S_MAX)
        raise ValueError(f"{text!r} is out of range: choose from {low} to {high}")
    return text


def _cache_size(text: str) -> str:
    if parse_size_bytes(_checked(text, parse_size_bytes)) < CACHE_BYTES_MIN:
        raise ValueError(
            f"{text!r} is too small for an image: give the cache at least {CACHE_BYTES_MIN // MIB}MiB"
        )
    return text


def port_range(text: str) -> range:
    """Parse ``7421-7436`` or ``7421`` as ports.

    Raises:
        ValueError: it isn't a usable range.
    """
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text.strip())
    ports = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ports or not 1 <= ports[0] <= ports[-1] <= 65535:
        raise ValueError(f"{text!r} isn't a range of ports: write ports from 1 to 65535, such as 7421-7436")
    if len(ports) > CASTS_AT_ONCE_MAX:
        raise ValueError(
            f"{text!r} has {len(ports)} ports: use at most {CASTS_AT_ONCE_MAX}, one for each concurrent cast"
        )
    return ports


def _ports(text: str) -> str:
    port_range(text)
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]", text):
        raise ValueError(f"{text!r} isn't a host name: write it without scheme and port, such as images.lan")
    return text.lower()


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} isn't an address or a network, such as 10.0.0.5 or 10.0.0.0/24: {error}"
        ) from error
    return text


def _remote(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https", "s3") or not parts.netloc:
        raise ValueError(f"{text!r} isn't an image's URL: it must start with http://, https:// or s3://")
    if not text.endswith(("/", ".dci")):
        raise ValueError(f"{text!r} must end in .dci (one image) or / (all images of a folder)")
    return text


def _database(text: str) -> str:
    scheme = urllib.parse.urlsplit(text).scheme
    if scheme.split("+")[0] not in ("sqlite", "postgresql"):
        raise ValueError(
            "only SQLite and PostgreSQL are supported: write sqlite:////var/lib/diskcast/diskcast.db "
            "or postgresql://USER@HOST/DATABASE"
        )
    if scheme == "postgresql":
        return text.replace("postgresql:", "postgresql+psycopg:", 1)
    if scheme not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(f"the driver {scheme!r} isn't supported: write postgresql:// or sqlite://")
    return text


def _path(value: object) -> object:
    """Expand ``~`` to the home of the daemon's user."""
    return Path(value).expanduser() if isinstance(value, str) and value else value


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], Field(max_length=LIST_COUNT_MAX)]
Listen = Annotated[str, AfterValidator(_listen)]
Group = Annotated[str, AfterValidator(_group)]
Rate = Annotated[str, AfterValidator(_rate)]
CacheSize = Annotated[str, AfterValidator(_cache_size)]
Ports = Annotated[str, AfterValidator(_ports)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], Field(max_length=LIST_COUNT_MAX)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(max_length=LIST_COUNT_MAX)]
Remotes = Annotated[tuple[Annotated[str, AfterValidator(_remote)], ...], Field(max_length=LIST_COUNT_MAX)]
DatabaseUrl = Annotated[str, AfterValidator(_database)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
ConfigPath = Annotated[Path, BeforeValidator(_path)]
Paths = Annotated[tuple[ConfigPath, ...], Field(max_length=LIST_COUNT_MAX)]
