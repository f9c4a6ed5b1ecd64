"""A room's template: what each of its machines gets, with variables.

A template is plain data, from a TOML file or as JSON: parsing it executes nothing and reads no other file.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from protocol.errors import ConfigurationError
from sender.patches.limits import (
    SCRIPT_TIMEOUT_S_DEFAULT,
    SCRIPT_TIMEOUT_S_MAX,
    TEMPLATE_BYTES_MAX,
    USER_DATA_DEPTH_MAX,
    USER_DATA_VALUES_MAX,
)
from sender.patches.template_fields import FILESYSTEM_KINDS, TABLES, BackendKind, FieldKind, TemplateField
from sender.patches.variables import VARIABLE_NAME

_TYPES: Final = {FieldKind.TEXT: str, FieldKind.INTEGER: int, FieldKind.SWITCH: bool}
_ORDER_DEFAULT: Final = 50
_ORDER_MAX: Final = 99
_PARTITION_MAX: Final = 1024
"""Far more than disks have; the image knows which exist."""
_Entry = TypeVar("_Entry")


@dataclasses.dataclass(frozen=True, slots=True)
class FilesystemEntry:
    """The filesystem of the image that the settings are written into."""

    kind: BackendKind
    partition: int


@dataclasses.dataclass(frozen=True, slots=True)
class UserEntry:
    """A user; texts may have variables."""

    name: str
    full_name: str = ""
    groups: tuple[str, ...] = ()
    shell: str = "/bin/bash"
    ssh_keys: tuple[str, ...] = ()
    password_hash: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkEntry:
    """The network of one interface."""

    mode: str
    interface: str = "lan0"
    mac: str = "{{ mac }}"
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    """A file to write."""

    path: str
    content: str = dataclasses.field(repr=False)
    mode: str = ""
    owner: str = "root:root"
    secret: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ScriptEntry:
    """A script of the first boot."""

    name: str
    content: str = dataclasses.field(repr=False)
    order: int = _ORDER_DEFAULT
    timeout_s: int = SCRIPT_TIMEOUT_S_DEFAULT


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A checked template; the values of its variables aren't known yet."""

    hostname: str
    domain: str = ""
    locale: str = ""
    timezone: str = ""
    secret_variables: tuple[str, ...] = ()
    filesystem: FilesystemEntry | None = None
    users: tuple[UserEntry, ...] = ()
    network: NetworkEntry | None = None
    files: tuple[FileEntry, ...] = ()
    first_boot: tuple[ScriptEntry, ...] = ()
    user_data: Mapping[str, object] = dataclasses.field(default_factory=dict, repr=False)


def load_template(path: Path) -> Template:
    """Return the template of a TOML file.

    Raises:
        ConfigurationError: the file can't be read, isn't TOML, or declares something invalid.
    """
    try:
        with path.open("rb") as file:
            data = file.read(TEMPLATE_BYTES_MAX + 1)
        if len(data) > TEMPLATE_BYTES_MAX:
            raise ConfigurationError(
                f"it has more than {TEMPLATE_BYTES_MAX >> 20} MiB: put large files into the image"
            )
        return read_template(data.decode())
    except OSError as error:
        raise ConfigurationError(f"can't read the template {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the template isn't TOML: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def read_template(text: str) -> Template:
    """Return the template of TOML text.

    Raises:
        ConfigurationError: it isn't TOML, or declares something invalid.
    """
    try:
        return parse_template(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the template isn't TOML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError("the template is nested too deeply") from error


def parse_template(data: Mapping[str, object]) -> Template:
    """Return the template of plain values, as TOML or JSON gives them.

    Raises:
        ConfigurationError: a key is unknown, missing or of the wrong type; the message names it.
    """
    fields = _read_table("", "", data)
    secrets = fields.get("secret_variables", ())
    assert isinstance(secrets, tuple)
    for index, name in enumerate(secrets):
        if not VARIABLE_NAME.fullmatch(name):
            raise ConfigurationError(
                f"secret_variables[{index}]: {name[:64]!r} can't be the name of a variable"
            )
    network = fields.get("network")
    fields["users"] = _entries(UserEntry, "users", data)
    fields["files"] = _entries(FileEntry, "files", data)
    fields["first_boot"] = _entries(ScriptEntry, "first_boot", data)
    fields["network"] = (
        None if network is None else NetworkEntry(**_read_table("network", "network", network))  # type: ignore[arg-type]
    )
    fields["filesystem"] = _filesystem(fields.get("filesystem"))
    _check_user_data(fields.get("user_data", {}))
    template = Template(**fields)  # type: ignore[arg-type]
    for index, script in enumerate(template.first_boot):
        _check_range(f"first_boot[{index}].order", script.order, 0, _ORDER_MAX)
        _check_range(f"first_boot[{index}].timeout_s", script.timeout_s, 1, SCRIPT_TIMEOUT_S_MAX)
    return template


def _filesystem(value: object) -> FilesystemEntry | None:
    if value is None:
        return None
    fields = _read_table("filesystem", "filesystem", value)
    kind, partition = fields["kind"], fields["partition"]
    if kind not in FILESYSTEM_KINDS:
        raise ConfigurationError(
            f"filesystem.kind: {str(kind)[:32]!r} can't be used: write {', '.join(FILESYSTEM_KINDS)}; without "
            "[filesystem] the settings go into the seed partition"
        )
    assert isinstance(kind, str)
    assert isinstance(partition, int)
    _check_range("filesystem.partition", partition, 1, _PARTITION_MAX)
    return FilesystemEntry(BackendKind(kind), partition)


def _entries(kind: type[_Entry], table: str, data: Mapping[str, object]) -> tuple[_Entry, ...]:
    items = data.get(table, [])
    assert isinstance(items, list | tuple)
    return tuple(kind(**_read_table(table, f"{table}[{index}]", item)) for index, item in enumerate(items))


def _read_table(table: str, place: str, value: object) -> dict[str, object]:
    """Return the checked values of a table; inner tables as they are."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{place}: a table is expected: see the template reference")
    known = {field.name: field for field in TABLES[table]}
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
            raise ConfigurationError(f"{_at(place, str(key)[:64])}: the template has no such key: {hint}")
    for field in known.values():
        if field.required and field.name not in value:
            raise ConfigurationError(f"{_at(place, field.name)}: it is missing: {field.meaning}")
    return {key: _value(known[key], _at(place, key), item) for key, item in value.items()}


def _value(field: TemplateField, place: str, value: object) -> object:
    match field.kind:
        case FieldKind.TEXTS | FieldKind.TABLES:
            if not isinstance(value, list | tuple) or len(value) > field.count_max:
                raise ConfigurationError(f"{place}: a list of at most {field.count_max} is expected")
            if field.kind is FieldKind.TABLES:
                return tuple(value)
            return tuple(_text(f"{place}[{index}]", item) for index, item in enumerate(value))
        case FieldKind.TABLE | FieldKind.FREE:
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{place}: a table is expected")
            return value
        case FieldKind.TEXT:
            return _text(place, value)
        case FieldKind.INTEGER | FieldKind.SWITCH:
            if type(value) is not _TYPES[field.kind]:  # True is an int too
                raise ConfigurationError(f"{place}: {field.kind} is expected")
            return value


def _text(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{place}: text is expected: put it in quotation marks")
    if any(not letter.isprintable() and letter not in "\n\t" for letter in value if letter < "\xa0"):
        raise ConfigurationError(f"{place}: it has control characters: only line breaks and tabs are allowed")
    return value


def _check_range(place: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{place}: a number from {low} to {high} is expected")


def _check_user_data(value: object) -> None:
    """Check the shape of further cloud-config, which is otherwise cloud-init's."""
    remaining = USER_DATA_VALUES_MAX

    def check(place: str, item: object, depth: int) -> None:
        nonlocal remaining
        remaining -= 1
        if depth > USER_DATA_DEPTH_MAX or remaining < 0:
            raise ConfigurationError(
                f"{place}: at most {USER_DATA_VALUES_MAX} values, nested at most {USER_DATA_DEPTH_MAX} deep"
            )
        if isinstance(item, str):
            _text(place, item)
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                _text(f"{place} (a key)", key)
                check(_at(place, key[:64]), inner, depth + 1)
        elif isinstance(item, list | tuple):
            for index, inner in enumerate(item):
                check(f"{place}[{index}]", inner, depth + 1)
        elif isinstance(item, datetime.date | datetime.time):
            raise ConfigurationError(f"{place}: write dates and times as text, in quotation marks")
        elif not isinstance(item, bool | int | float) or not math.isfinite(item):
            raise ConfigurationError(f"{place}: cloud-config can't have such a value")

    check("user_data", value, 0)


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
