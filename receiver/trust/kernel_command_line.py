"""Trust on the kernel command line, for machines that boot from the network and keep nothing.

Any machine that can boot from the network can read it, so it carries only what everybody may know::

    diskcast.trust=RWQ…,RWQ…  diskcast.min-version=202611301405  diskcast.tag=lab-pc,uefi

It binds as much as the boot chain does, and no more.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from protocol.control.boot_parameters import BootParameters, parse_boot_parameters_untrusted
from protocol.trust.trusted_keys import TrustedKey

COMMAND_LINE: Final = Path("/proc/cmdline")
KEY_SOURCE: Final = "kernel command line"


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


def read_kernel_parameters(path: Path = COMMAND_LINE) -> BootParameters:
    """Read the parameters of this boot; the defaults if there is no command line to read.

    Raises:
        ConfigurationError: a parameter has no valid value: a typo must not leave a machine without its floor.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return BootParameters()
    return parse_boot_parameters_untrusted(text)


def read_kernel_trust(path: Path = COMMAND_LINE) -> KernelTrust:
    """Read the trust of this boot; none if there is no command line to read.

    Raises:
        ConfigurationError: a parameter has no valid value.
    """
    parameters = read_kernel_parameters(path)
    keys = tuple(TrustedKey(key, KEY_SOURCE) for key in parameters.keys)
    return KernelTrust(keys, parameters.version_min, parameters.tags)
