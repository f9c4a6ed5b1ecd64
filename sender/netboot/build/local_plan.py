"""The build of a medium for this machine's daemon: the defaults of ``diskcast netboot build``."""

from __future__ import annotations

import ipaddress
import json
import os
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from protocol.trust.pin import parse_pin
from protocol.trust.trusted_keys import TrustedKey
from sender.config.local_endpoint import find_local_endpoint
from sender.identity.key_options import read_public_key
from sender.identity.signing_keys import default_key_path, public_key_path
from sender.netboot.build.apt_packages import this_suite
from sender.netboot.build.builder import BuildPlan
from sender.netboot.build.root_filesystem import BakedIn
from sender.netboot.medium import Flavour

_EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"


def local_plan(output: Path, baked_in: BakedIn) -> BuildPlan:
    """Return the plan of a medium for all machines, from this machine's apt sources.

    Raises:
        ConfigurationError: this user has no home directory, or the machine runs no Debian.
    """
    return BuildPlan(
        output=output.absolute(),
        suite=this_suite(),
        mirrors=(),
        flavour=Flavour.GENERIC,
        with_firmware=True,
        quick=False,
        baked_in=baked_in,
        cache=default_cache().absolute(),
        time_s=source_date(),
        firmware_optional=True,
    )


def step_notes(*, as_json: bool) -> Callable[[str], None]:
    """Return a function that prints the steps of a build with the time since now."""
    started_s = time.monotonic()

    def note(text: str) -> None:
        elapsed_s = time.monotonic() - started_s
        if as_json:
            click.echo(json.dumps({"event": "step", "text": text, "elapsed_s": round(elapsed_s, 1)}))
        else:
            click.echo(f"{elapsed_s:6.1f} s  {text}", err=True)

    return note


def baked_in_of(servers: tuple[str, ...], pins: tuple[str, ...], key_texts: tuple[str, ...]) -> BakedIn:
    """Return the values of the options, or those of this machine's daemon and its trusted keys."""
    endpoint = find_local_endpoint()
    if endpoint is not None and not servers and not pins:
        servers = () if _is_loopback(endpoint.url) else (endpoint.url,)
        pins = (endpoint.pin,) if endpoint.pin else ()
    if key_texts:
        keys = []
        for index, text in enumerate(key_texts, 1):
            public, name = read_public_key(text)
            keys.append(TrustedKey(public, name or f"key-{index}"))
    else:
        keys = load_trusted_keys(TRUSTED_KEYS_DIRECTORY) or _own_key()
    return BakedIn(servers, tuple(parse_pin(pin) for pin in pins), tuple(keys))


def _own_key() -> list[TrustedKey]:
    """Return the public key of this user's own signing key, if there is one."""
    try:
        path = public_key_path(default_key_path())
    except ConfigurationError:  # no home directory
        return []
    if not path.exists():
        return []
    public, name = read_public_key(str(path))
    return [TrustedKey(public, name)]


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def default_cache() -> Path:
    """Return the directory of downloaded packages.

    Raises:
        ConfigurationError: this user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "diskcast" / "netboot"
    except RuntimeError as error:
        raise ConfigurationError(
            "this user has no home directory for downloaded packages: give --cache"
        ) from error


def source_date() -> int | None:
    """Return the time of all files in the medium, from the environment; None for that of its newest package.

    Raises:
        ConfigurationError: the variable holds no time.
    """
    text = os.environ.get(_EPOCH_VARIABLE, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 32:
        raise ConfigurationError(f"{_EPOCH_VARIABLE}={text} isn't a time in seconds since 1970: unset it")
    return int(text)
