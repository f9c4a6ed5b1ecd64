"""The settings of one machine: a template with the machine's values, all checked."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import ipaddress
import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Final

from sender.patches.machines_file import PatchMachine
from sender.patches.template import FileEntry, FilesystemEntry, NetworkEntry, ScriptEntry, Template, UserEntry
from sender.patches.variables import Filler

_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_LOGIN: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LOCALE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_TIMEZONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}")
_INTERFACE: Final = re.compile(r"[a-z][a-z0-9_-]{0,14}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MODE: Final = re.compile(r"0?[0-7]{3,4}")
_SCRIPT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HASH: Final = re.compile(r"\$(1|2[abxy]|5|6|7|y|gy|sm3)\$[!-9;-~]{8,512}")
"""Hash of crypt(5); a colon would end the field in /etc/shadow."""
_KEY_TYPES: Final = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]{1,64}")
_PATH_BYTES_MAX: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class MachineSettings:
    """A template whose variables are filled in and checked.

    Attributes:
        machine_id: the machine.
        hostname: host name without domain.
        domain: domain; empty for none.
        locale: locale; empty for the image's.
        timezone: time zone; empty for the image's.
        users: users.
        network: static network; None for DHCP on the first interface.
        files: files.
        first_boot: scripts in their order.
        user_data: further cloud-config.
        filesystem: filesystem to write them into; None for the seed partition.
    """

    machine_id: str
    hostname: str
    domain: str
    locale: str
    timezone: str
    users: tuple[UserEntry, ...]
    network: NetworkEntry | None
    files: tuple[FileEntry, ...]
    first_boot: tuple[ScriptEntry, ...]
    user_data: Mapping[str, object] = dataclasses.field(repr=False)
    filesystem: FilesystemEntry | None = None


def settings_of(template: Template, machine: PatchMachine) -> MachineSettings:
    """Return a machine's settings.

    Raises:
        ConfigurationError: a variable is unknown or empty, or a value is invalid; the message names the place in the
            template, the machine and the fix.
    """
    fill = Filler(machine.name, machine.variables, template.secret_variables)

    def optional(place: str, text: str, rule: re.Pattern[str], explanation: str) -> str:
        return fill.checked(place, text, rule.fullmatch, explanation) if text else ""

    users = tuple(_user(fill, f"users[{index}]", user) for index, user in enumerate(template.users))
    _require_distinct(fill, "users", [user.name for user in users])
    files = tuple(_file(fill, f"files[{index}]", file) for index, file in enumerate(template.files))
    _require_distinct(fill, "files", [file.path for file in files])
    scripts = tuple(
        _script(fill, f"first_boot[{index}]", script) for index, script in enumerate(template.first_boot)
    )
    _require_distinct(fill, "first_boot", [script.name for script in scripts])
    user_data = _filled(fill, "user_data", template.user_data)
    assert isinstance(user_data, dict)
    return MachineSettings(
        machine_id=machine.machine_id,
        hostname=fill.checked(
            "hostname",
            template.hostname,
            lambda name: _LABEL.fullmatch(name) and not name.isdecimal(),
            "a host name has 1 to 63 letters, digits and dashes, no dots (see domain), no dash at an end, and not "
            "digits alone",
        ),
        domain=fill.checked("domain", template.domain, _is_domain, "write it as lab.example")
        if template.domain
        else "",
        locale=optional("locale", template.locale, _LOCALE, "write it as de_DE.UTF-8"),
        timezone=optional("timezone", template.timezone, _TIMEZONE, "write it as Europe/Vienna"),
        users=users,
        network=None if template.network is None else _network(fill, template.network),
        files=files,
        first_boot=tuple(sorted(scripts, key=lambda script: (script.order, script.name))),
        user_data=user_data,
        filesystem=template.filesystem,
    )


def _user(fill: Filler, place: str, user: UserEntry) -> UserEntry:
    login = "a login or group name has lower-case letters, digits, - and _, and starts with a letter"

    def hash_error(_: str) -> str:
        return "give a hash as of `mkpasswd -m yescrypt`, never the password itself"

    password_hash = fill.fill(f"{place}.password_hash", user.password_hash)
    if password_hash and not _HASH.fullmatch(password_hash):
        raise fill.error(f"{place}.password_hash", f"it can't be used: {hash_error(password_hash)}")
    return UserEntry(
        fill.checked(f"{place}.name", user.name, _LOGIN.fullmatch, login),
        fill.checked(
            f"{place}.full_name",
            user.full_name,
            lambda text: text.isprintable() and not set(text) & set(":,"),
            "one line without colons and commas",
        ),
        tuple(
            fill.checked(f"{place}.groups[{index}]", group, _LOGIN.fullmatch, login)
            for index, group in enumerate(user.groups)
        ),
        fill.checked(f"{place}.shell", user.shell, _is_path, "give an absolute path"),
        tuple(
            fill.checked(
                f"{place}.ssh_keys[{index}]",
                key.strip(),
                _is_ssh_key,
                "give the line of a .pub file, such as ssh-ed25519 AAAA… name",
            )
            for index, key in enumerate(user.ssh_keys)
        ),
        password_hash,
    )


def _network(fill: Filler, network: NetworkEntry) -> NetworkEntry | None:
    if network.mode not in ("dhcp", "static"):
        raise fill.error("network.mode", f"{network.mode[:32]!r} can't be used: write dhcp or static")
    static_only = ("addresses", "gateway", "dns", "search")
    if network.mode == "dhcp":
        if given := [name for name in static_only if getattr(network, name)]:
            raise fill.error(f"network.{given[0]}", "DHCP gives it: remove it, or set network.mode to static")
        return None
    if not network.addresses:
        raise fill.error("network.addresses", "a static network needs one, such as 10.1.2.3/24")

    def each(
        name: str, texts: tuple[str, ...], is_valid: Callable[[str], object], rule: str
    ) -> tuple[str, ...]:
        return tuple(
            fill.checked(f"network.{name}[{index}]", text, is_valid, rule) for index, text in enumerate(texts)
        )

    address = "give an IP address"
    return NetworkEntry(
        "static",
        fill.checked(
            "network.interface",
            network.interface,
            _INTERFACE.fullmatch,
            "at most 15 lower-case letters and digits",
        ),
        fill.checked("network.mac", network.mac, _MAC.fullmatch, "write it as 52:54:00:12:34:56"),
        each("addresses", network.addresses, _is_interface, "write it with its prefix, as 10.1.2.3/24"),
        fill.checked("network.gateway", network.gateway, _is_address, address) if network.gateway else "",
        each("dns", network.dns, _is_address, address),
        each("search", network.search, _is_domain, "write it as lab.example"),
    )


def _file(fill: Filler, place: str, file: FileEntry) -> FileEntry:
    mode = file.mode or ("0600" if file.secret else "0644")
    return FileEntry(
        fill.checked(
            f"{place}.path", file.path, _is_path, "give an absolute path without .. and double slashes"
        ),
        fill.fill(f"{place}.content", file.content),
        fill.checked(f"{place}.mode", mode, _MODE.fullmatch, "write it in octal, as 0644"),
        fill.checked(
            f"{place}.owner",
            file.owner,
            lambda text: len(text.split(":")) == 2 and all(map(_LOGIN.fullmatch, text.split(":"))),
            "write it as user:group",
        ),
        file.secret,
    )


def _script(fill: Filler, place: str, script: ScriptEntry) -> ScriptEntry:
    content = fill.fill(f"{place}.content", script.content, for_script=True)
    if not content.startswith("#!/"):
        raise fill.error(f"{place}.content", "a script starts with a line such as #!/bin/sh")
    return ScriptEntry(
        fill.checked(
            f"{place}.name",
            script.name,
            _SCRIPT.fullmatch,
            "at most 32 lower-case letters, digits and dashes",
        ),
        content,
        script.order,
        script.timeout_s,
    )


def _filled(fill: Filler, place: str, value: object) -> object:
    if isinstance(value, str):
        return fill.fill(place, value)
    if isinstance(value, Mapping):
        return {key: _filled(fill, f"{place}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(fill, f"{place}[{index}]", item) for index, item in enumerate(value)]
    return value


def _require_distinct(fill: Filler, place: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        first = names.index(name)
        if first != index:
            raise fill.error(f"{place}[{index}]", f"{name!r} is {place}[{first}] too: remove one of them")


def _is_domain(text: str) -> bool:
    return len(text) <= 253 and all(map(_LABEL.fullmatch, text.split(".")))


def _is_path(text: str) -> bool:
    return (
        text.startswith("/")
        and text.isprintable()
        and len(text.encode()) <= _PATH_BYTES_MAX
        and posixpath.normpath(text) == text
        and not text.startswith("//")
        and text != "/"
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_interface(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "/" in text and "%" not in text


def _is_ssh_key(text: str) -> bool:
    """Return whether ``text`` is one public key, whose type is repeated within its base64."""
    parts = text.split(" ", 2)
    if len(parts) < 2 or not text.isprintable() or not _KEY_TYPES.fullmatch(parts[0]):
        return False
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    kind = parts[0].encode()
    return blob.startswith(len(kind).to_bytes(4, "big") + kind) and len(blob) > len(kind) + 4
