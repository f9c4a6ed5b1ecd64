"""The settings of this boot: those that were built into the live system, and those on the kernel command line.

Pins and keys that were built in win. The command line comes over the network, from the first that answers: it may
choose among them, but not add one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from protocol.control.boot_parameters import (
    COMMAND_LINE_CHARS_MAX,
    BootParameters,
    parse_boot_parameters_untrusted,
)
from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from receiver.live.messages import FOREIGN_KEY, FOREIGN_PIN, INVALID_SETTING, BootStopError
from receiver.trust.kernel_command_line import COMMAND_LINE

BOOT_CONFIGURATION: Final = Path("/etc/diskcast/boot.conf")


@dataclasses.dataclass(frozen=True, slots=True)
class SettingsPaths:
    """The files that hold settings."""

    command_line: Path = COMMAND_LINE
    configuration: Path = BOOT_CONFIGURATION
    trusted_keys: Path = TRUSTED_KEYS_DIRECTORY


def read_settings(paths: SettingsPaths) -> BootParameters:
    """Read the settings of this boot.

    Raises:
        BootStopError: a value is invalid, or the command line has a pin or a key that wasn't built in.
    """
    try:
        built_in = parse_boot_parameters_untrusted(
            _without_comments(_read(paths.configuration)), source=f"in {paths.configuration}"
        )
        given = parse_boot_parameters_untrusted(_read(paths.command_line))
        merged = parse_boot_parameters_untrusted(_read(paths.command_line), defaults=built_in)
        trusted = [trusted.key for trusted in load_trusted_keys(paths.trusted_keys)]
    except ConfigurationError as error:
        raise BootStopError(INVALID_SETTING.text(error=error)) from error
    if built_in.pins:
        for pin in given.pins:
            if not any(_same_pin(pin, known) for known in built_in.pins):
                raise BootStopError(FOREIGN_PIN.text(pin=pin))
        merged = dataclasses.replace(merged, pins=built_in.pins)
    for key in given.keys if trusted else ():
        if key not in trusted:
            raise BootStopError(FOREIGN_KEY.text(key=key.id_text))
    return merged


def _same_pin(one: str, other: str) -> bool:
    """Return whether two pins, each a whole one or a prefix, can be of one certificate; pins are public."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _read(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(COMMAND_LINE_CHARS_MAX + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
