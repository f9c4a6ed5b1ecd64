"""Trust on the kernel command line, for machines that boot from the network and keep nothing.

Any machine that can boot from the network can read it, so it carries only what everybody may know::

    diskcast.trust=RWQ…,RWQ…  diskcast.min-version=202611301405  diskcast.tag=lab-pc,uefi

It binds as much as the boot chain does, and no more.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import STATEMENT_VERSION_MAX
from protocol.trust.trusted_keys import TrustedKey

COMMAND_LINE: Final = Path("/proc/cmdline")

TRUST_PARAMETER: Final = "diskcast.trust"
VERSION_PARAMETER: Final = "diskcast.min-version"
TAG_PARAMETER: Final = "diskcast.tag"


@dataclasses.dataclass(frozen=True, slots=True)
class KernelTrust:
    """Trust that the kernel command line gives.

    Attributes:
        keys: trusted keys.
        version_min: lowest version of any image.
        tags: tags that every image must have.
    """

    keys: tuple[TrustedKey, ...] = ()
    version_min: int = 0
    tags: frozenset[str] = frozenset()


def read_kernel_trust(path: Path = COMMAND_LINE) -> KernelTrust:
    """Read the parameters of this boot; none if there is no command line to read.

    Raises:
        ConfigurationError: a parameter has no valid value: a typo must not leave a machine without its floor.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return KernelTrust()
    keys: list[TrustedKey] = []
    version_min = 0
    tags: set[str] = set()
    for word in text.split():
        name, _, value = word.partition("=")
        values = value.strip('"').split(",")
        match name:
            case "diskcast.trust":
                keys += [_key(one) for one in values]
            case "diskcast.min-version":
                version_min = max(version_min, _version(value))
            case "diskcast.tag":
                tags.update(values)
    return KernelTrust(tuple(keys), version_min, frozenset(tags))


def _key(text: str) -> TrustedKey:
    try:
        return TrustedKey(PublicKey.parse(text), "kernel command line")
    except ConfigurationError as error:
        raise ConfigurationError(f"{TRUST_PARAMETER}={text} on the kernel command line: {error}") from error


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > STATEMENT_VERSION_MAX or len(text) > 20:
        raise ConfigurationError(
            f"{VERSION_PARAMETER}={text} on the kernel command line isn't a version: give a number"
        )
    return int(text)
