"""The words of a kernel command line by which a boot service starts the live system.

::

    diskcast.server=https://10.0.0.1:7400 diskcast.pin=mfrg… diskcast.boot=dcb_… BOOTIF=01-52-54-00-99-00-01

One table, :data:`PARAMETERS`, says how each word is written and read. Every machine that can boot from the network can
read the line, and an attacker on the way can change it: it carries public values, and a boot token that admits one
machine once. The live system reads the same words from ``/etc/diskcast/boot.conf``, where its builder put them.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocol.errors import ConfigurationError
from protocol.trust.minisign import PublicKey
from protocol.trust.pin import parse_pin
from protocol.trust.statement import STATEMENT_TAGS_MAX, STATEMENT_VERSION_MAX

COMMAND_LINE_CHARS_MAX: Final = 32 * 1024
"""Longest text to read: ``/proc/cmdline`` has at most what a boot loader and the kernel's configuration can give."""

FORMATTED_CHARS_MAX: Final = 1536
"""Longest text to write: x86 kernels silently cut the line after 2,047 characters, and boot loaders add words."""

COMMAND_LINE_SOURCE: Final = "on the kernel command line"

BOOT_TOKEN_PREFIX: Final = "dcb_"  # noqa: S105 - a prefix
BOOT_TOKEN_CHARS_MAX: Final = 128
SERVERS_MAX: Final = 8
PINS_MAX: Final = 8
"""As many as a TLS context takes: a certificate and its successor for a few daemons."""
KEYS_MAX: Final = 16
UNKNOWN_MAX: Final = 16

_VALUE_CHARS: Final = re.compile(r"[A-Za-z0-9._~:/?@+=%,*\[\]-]+")
"""No character that iPXE, GRUB, the kernel or a shell gives a meaning of its own: nobody has to quote."""

_SHOWN_CHARS_MAX: Final = 80
_SERVER: Final = re.compile(r"https?://[^/?@,]+/?")
_IMAGE: Final = re.compile(r"(https?|file)://\S+")
_BOOT_TOKEN: Final = re.compile(rf"{BOOT_TOKEN_PREFIX}[A-Za-z0-9_-]{{16,{BOOT_TOKEN_CHARS_MAX}}}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LABEL: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BOOTIF: Final = re.compile(r"01((?:-[0-9a-f]{2}){6})", re.IGNORECASE)
"""PXELINUX's form: the hardware type, here Ethernet, and the address."""


class LiveMode(enum.StrEnum):
    """The program that the live system starts."""

    RUN = "run"
    """The agent, which waits for casts of a daemon."""
    MENU = "menu"
    """The menu for one machine, for a technician at its console."""
    SHELL = "shell"
    """A shell, for examinations."""


class AfterCast(enum.StrEnum):
    """Action after a successful cast."""

    WAIT = "wait"
    EXIT = "exit"
    REBOOT = "reboot"
    POWEROFF = "poweroff"


class BondMode(enum.StrEnum):
    """Mode of a bond of all network cards, in the kernel's words."""

    ROUND_ROBIN = "balance-rr"
    ACTIVE_BACKUP = "active-backup"
    XOR = "balance-xor"
    BROADCAST = "broadcast"
    LACP = "802.3ad"
    TLB = "balance-tlb"
    ALB = "balance-alb"


@dataclasses.dataclass(frozen=True, slots=True)
class BootParameters:
    """The parameters of one boot.

    Attributes:
        servers: URLs of daemons.
        pins: pins of their certificates, or prefixes of pins.
        boot_token: token that enrols this machine, once; empty if there is none.
        mode: the program to start.
        target: disk to write, as ``--target`` takes it.
        after: action after a successful cast.
        root_sha256: SHA-256 of ``root.sqfs`` in hexadecimal; empty to use the one in the initrd.
        vlan: VLAN id of the network of the casts; 0 for untagged frames.
        bond: mode of the bond of all network cards; None for no bond.
        image_url: image for the menu without a daemon; empty if there is none.
        keys: trusted image keys.
        version_min: lowest version of any image.
        tags: tags that every image must have.
        grow: grow the last partition after the cast.
        efi_label: label of the firmware's boot entry for the disk; empty to create none.
        boot_mac: hardware address of the card that the machine booted by, lower case with colons; empty if unknown.
        unknown: names that start with ``diskcast.`` and aren't in the table, perhaps of a newer boot service.
    """

    servers: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    boot_token: str = dataclasses.field(default="", repr=False)
    mode: LiveMode = LiveMode.RUN
    target: str = "auto"
    after: AfterCast = AfterCast.REBOOT
    root_sha256: str = ""
    vlan: int = 0
    bond: BondMode | None = None
    image_url: str = ""
    keys: tuple[PublicKey, ...] = ()
    version_min: int = 0
    tags: frozenset[str] = frozenset()
    grow: bool = False
    efi_label: str = ""
    boot_mac: str = ""
    unknown: tuple[str, ...] = dataclasses.field(default=(), compare=False)


class _InvalidValueError(Exception):
    """A value that a parameter can't have; the message is the fix."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootParameter:
    """One word of the command line.

    Attributes:
        name: the part before ``=``.
        field: attribute of :class:`BootParameters`.
        value: placeholder or values, for the documentation.
        meaning: explanation, for the documentation.
        read: returns the value of a text, or raises :class:`_InvalidValueError`.
        write: returns the text of a value.
        combine: returns the value of a word that is there twice.
        secret: keep the value out of error messages.
        lenient: accept any value: other systems and boot loaders write this word too.
    """

    name: str
    field: str
    value: str
    meaning: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    combine: Callable[[Any, Any], Any] = lambda _earlier, later: later
    secret: bool = False
    lenient: bool = False


def _matching(pattern: re.Pattern[str], fix: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.fullmatch(text):
            raise _InvalidValueError(fix)
        return text

    return read


def _listed(read: Callable[[str], Any], count_max: int) -> Callable[[str], tuple[Any, ...]]:
    def read_all(text: str) -> tuple[Any, ...]:
        texts = text.split(",")
        if len(texts) > count_max:
            raise _InvalidValueError(f"give at most {count_max}, separated by commas")
        return tuple(read(one) for one in texts)

    return read_all


def _united(count_max: int) -> Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]:
    def combine(earlier: Sequence[Any], later: Sequence[Any]) -> tuple[Any, ...]:
        together = tuple(dict.fromkeys((*earlier, *later)))
        if len(together) > count_max:
            raise _InvalidValueError(f"give at most {count_max} in all")
        return together

    return combine


def _one_of(kind: type[enum.StrEnum], *excluded: enum.StrEnum) -> Callable[[str], enum.StrEnum]:
    choices = {choice.value: choice for choice in kind if choice not in excluded}

    def read(text: str) -> enum.StrEnum:
        if text not in choices:
            raise _InvalidValueError(f"give one of {', '.join(choices)}")
        return choices[text]

    return read


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        # The length is checked first: Python refuses to convert thousands of digits.
        fits = text.isascii() and text.isdigit() and len(text) <= 20
        if not fits or not low <= int(text) <= high:
            raise _InvalidValueError(f"give a number from {low} to {high}")
        return int(text)

    return read


def _key(text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except ConfigurationError as error:
        raise _InvalidValueError(str(error)) from error


def _pin(text: str) -> str:
    try:
        return parse_pin(text)
    except ConfigurationError as error:
        raise _InvalidValueError(str(error)) from error


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise _InvalidValueError("give yes or no")
    return text == "yes"


def _boot_interface(text: str) -> str:
    """Return the address; empty if there is none in it."""
    found = _BOOTIF.fullmatch(text)
    return found[1][1:].replace("-", ":").lower() if found else ""


_joined: Final[Callable[[Sequence[str]], str]] = ",".join

PARAMETERS: Final = (
    BootParameter(
        "diskcast.server",
        "servers",
        "URL[,URL]",
        "Daemons of one database; the first that answers is used.",
        _listed(_matching(_SERVER, "give a URL such as https://192.0.2.1:7400"), SERVERS_MAX),
        _joined,
        _united(SERVERS_MAX),
    ),
    BootParameter(
        "diskcast.pin",
        "pins",
        "PIN[,PIN]",
        "Pins of the daemons' certificates, or prefixes of 20 characters and more.",
        _listed(_pin, PINS_MAX),
        _joined,
        _united(PINS_MAX),
    ),
    BootParameter(
        "diskcast.boot",
        "boot_token",
        f"{BOOT_TOKEN_PREFIX}…",
        "Boot token: admits this machine once, within ten minutes.",
        _matching(_BOOT_TOKEN, "boot the machine again, so that the boot service writes a new one"),
        secret=True,
    ),
    BootParameter(
        "diskcast.mode",
        "mode",
        "run | menu | shell",
        "Program to start: the agent, the menu for one machine, or a shell.",
        _one_of(LiveMode),
    ),
    BootParameter(
        "diskcast.target",
        "target",
        "TARGET",
        "Disk to write, as `--target` of the agent takes it, without spaces.",
        str,
    ),
    BootParameter(
        "diskcast.after",
        "after",
        "reboot | poweroff | wait",
        "Action after a successful cast.",
        _one_of(AfterCast, AfterCast.EXIT),
    ),
    BootParameter(
        "diskcast.sha256",
        "root_sha256",
        "HEX",
        "SHA-256 of the live system's root filesystem, instead of the one in the initrd.",
        _matching(_SHA256, "give 64 hexadecimal digits, in lower case"),
    ),
    BootParameter(
        "diskcast.vlan", "vlan", "1 … 4094", "VLAN id of the network of the casts.", _number(1, 4094)
    ),
    BootParameter(
        "diskcast.bond",
        "bond",
        " | ".join(BondMode),
        "Bond all network cards in this mode.",
        _one_of(BondMode),
    ),
    BootParameter(
        "diskcast.image",
        "image_url",
        "URL",
        "Image for the menu without a daemon.",
        _matching(_IMAGE, "give a URL that starts with https://, http:// or file://"),
    ),
    BootParameter(
        "diskcast.trust",
        "keys",
        "KEY[,KEY]",
        "Trusted image keys, as `diskcast trust show` prints them.",
        _listed(_key, KEYS_MAX),
        lambda keys: ",".join(key.text for key in keys),
        _united(KEYS_MAX),
    ),
    BootParameter(
        "diskcast.min-version",
        "version_min",
        "N",
        "Lowest version of any image.",
        _number(0, STATEMENT_VERSION_MAX),
        combine=max,
    ),
    BootParameter(
        "diskcast.tag",
        "tags",
        "TAG[,TAG]",
        "Tags that every image must have.",
        lambda text: frozenset(_listed(str, STATEMENT_TAGS_MAX)(text)),
        lambda tags: ",".join(sorted(tags)),
        lambda earlier, later: earlier | later,
    ),
    BootParameter(
        "diskcast.grow",
        "grow",
        "yes | no",
        "Grow the last partition and its filesystem after the cast (`--grow`).",
        _yes_or_no,
        lambda grow: "yes" if grow else "no",
    ),
    BootParameter(
        "diskcast.efi-entry",
        "efi_label",
        "LABEL",
        "Create a UEFI boot entry of this name (`--efi-entry`).",
        _matching(_LABEL, "give at most 64 letters, digits, dots, dashes or underscores"),
    ),
    BootParameter(
        "BOOTIF",
        "boot_mac",
        "01-AA-BB-CC-DD-EE-FF",
        "Network card that the machine booted by; boot loaders write it.",
        _boot_interface,
        lambda mac: "01-" + mac.replace(":", "-"),
        lenient=True,
    ),
)

_BY_NAME: Final = {parameter.name: parameter for parameter in PARAMETERS}
_DEFAULTS: Final = BootParameters()


def format_boot_parameters(parameters: BootParameters) -> str:
    """Return the words of ``parameters``, those with defaults left out; no word needs quotes.

    Raises:
        ConfigurationError: a value can't be written, or the text is longer than a kernel keeps.
    """
    words = []
    for parameter in PARAMETERS:
        value = getattr(parameters, parameter.field)
        if value == getattr(_DEFAULTS, parameter.field):
            continue
        text = parameter.write(value)
        if not _VALUE_CHARS.fullmatch(text):
            raise _invalid(
                parameter, text, "a boot loader would change it: leave out spaces, quotes and &;$#|<>{}"
            )
        words.append(f"{parameter.name}={text}")
    line = " ".join(words)
    if len(line) > FORMATTED_CHARS_MAX:
        raise ConfigurationError(
            f"the kernel command line has {len(line)} characters, and some kernels cut a long one: give fewer servers, "
            f"pins or keys, at most {FORMATTED_CHARS_MAX} characters; put keys into the live system with 'diskcast "
            "netboot build --trust-key'"
        )
    if parse_boot_parameters_untrusted(line) != parameters:
        raise ConfigurationError(
            f"the boot parameters can't be written as a kernel command line without a change: {line[:_SHOWN_CHARS_MAX]}"
        )
    return line


def parse_boot_parameters_untrusted(
    text: str,
    *,
    defaults: BootParameters = _DEFAULTS,
    source: str = COMMAND_LINE_SOURCE,
) -> BootParameters:
    """Return the parameters in ``text``; other words are ignored.

    Lists that are there twice are joined, of other words the last one counts, of lowest versions the highest.

    Args:
        text: words, separated by white space.
        defaults: values of parameters that ``text`` doesn't have.
        source: place of ``text`` in error messages, with its preposition.

    Raises:
        ConfigurationError: a parameter has no valid value: a typo mustn't leave a machine without its floor or its pin.
    """
    if len(text) > COMMAND_LINE_CHARS_MAX:
        raise ConfigurationError(
            f"the text {source} has {len(text)} characters: give at most {COMMAND_LINE_CHARS_MAX}"
        )
    found: dict[str, Any] = {}
    unknown: dict[str, None] = {}
    for word in text.split():
        name, separator, value = word.strip('"').partition("=")
        parameter = _BY_NAME.get(name)
        if parameter is None:
            if name.startswith("diskcast.") and len(unknown) < UNKNOWN_MAX:
                unknown[_printable(name)] = None
            continue
        value = value.strip('"')
        try:
            if not parameter.lenient and not (separator and value and value.isprintable()):
                raise _InvalidValueError(f"give {parameter.name}={parameter.value}")
            read = parameter.read(value)
            earlier = found.get(parameter.field)
            found[parameter.field] = read if earlier is None else parameter.combine(earlier, read)
        except _InvalidValueError as error:
            raise _invalid(parameter, value, str(error), source) from error
    return dataclasses.replace(defaults, **found, unknown=tuple(unknown))


def _invalid(
    parameter: BootParameter, value: str, fix: str, source: str = COMMAND_LINE_SOURCE
) -> ConfigurationError:
    shown = "…" if parameter.secret else _printable(value)
    return ConfigurationError(f"{parameter.name}={shown} {source} isn't valid: {fix}")


def _printable(text: str) -> str:
    """Return the start of ``text`` without characters that a terminal would obey."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:_SHOWN_CHARS_MAX])
    return shown + ("…" if len(text) > _SHOWN_CHARS_MAX else "")
