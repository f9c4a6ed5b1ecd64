"""The table of everything that a template can declare; the parser and the reference page use it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from sender.patches.limits import (
    ADDRESSES_MAX,
    FILES_MAX,
    GROUPS_MAX,
    KEYS_MAX,
    SCRIPT_TIMEOUT_S_DEFAULT,
    SCRIPT_TIMEOUT_S_MAX,
    SCRIPTS_MAX,
    USERS_MAX,
)


class BackendKind(enum.StrEnum):
    """Ways in which a machine gets its settings."""

    SEED = "seed"
    EXT4 = "ext4"
    FAT = "fat"
    NTFS = "ntfs"


FILESYSTEM_KINDS: Final = tuple(kind for kind in BackendKind if kind is not BackendKind.SEED)
"""Backends that write into a filesystem of the image."""


class FieldKind(enum.StrEnum):
    """Type of a field's value in TOML and JSON."""

    TEXT = "text"
    TEXTS = "list of texts"
    INTEGER = "integer"
    SWITCH = "true or false"
    TABLE = "table"
    TABLES = "list of tables"
    FREE = "table of any values"


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateField:
    """One key of a table.

    Attributes:
        name: the key.
        kind: type of its value.
        meaning: the explanation for the reference.
        required: whether the table needs it.
        count_max: longest list.
    """

    name: str
    kind: FieldKind
    meaning: str
    required: bool = False
    count_max: int = 0


_F = TemplateField

TABLES: Final[dict[str, tuple[TemplateField, ...]]] = {
    "": (
        _F("hostname", FieldKind.TEXT, "host name without domain; letters, digits and dashes", required=True),
        _F("domain", FieldKind.TEXT, "domain behind the host name"),
        _F(
            "locale",
            FieldKind.TEXT,
            "locale, such as `de_DE.UTF-8`; the first boot generates it, on Debian from `/usr/share/i18n/SUPPORTED`",
        ),
        _F("timezone", FieldKind.TEXT, "time zone, such as `Europe/Vienna`"),
        _F("secret_variables", FieldKind.TEXTS, "columns whose values no message shows", count_max=32),
        _F(
            "filesystem",
            FieldKind.TABLE,
            "filesystem to write the settings into; the seed partition without it",
        ),
        _F("users", FieldKind.TABLES, "users", count_max=USERS_MAX),
        _F("network", FieldKind.TABLE, "network of the first boot; DHCP on the first interface without it"),
        _F("files", FieldKind.TABLES, "files to write", count_max=FILES_MAX),
        _F("first_boot", FieldKind.TABLES, "scripts of the first boot", count_max=SCRIPTS_MAX),
        _F(
            "user_data",
            FieldKind.FREE,
            "further cloud-config; its lists are appended to those of diskcast, and other keys must be new",
        ),
    ),
    "filesystem": (
        _F("kind", FieldKind.TEXT, f"{', '.join(f'`{kind}`' for kind in FILESYSTEM_KINDS)}", required=True),
        _F("partition", FieldKind.INTEGER, "number of the partition", required=True),
    ),
    "users": (
        _F(
            "name",
            FieldKind.TEXT,
            "login name; an existing user such as `root` gets the keys and the password",
            required=True,
        ),
        _F("full_name", FieldKind.TEXT, "full name"),
        _F("groups", FieldKind.TEXTS, "further groups, such as `sudo`", count_max=GROUPS_MAX),
        _F("shell", FieldKind.TEXT, "login shell; `/bin/bash` by default"),
        _F("ssh_keys", FieldKind.TEXTS, "public keys, one line each", count_max=KEYS_MAX),
        _F(
            "password_hash",
            FieldKind.TEXT,
            "hash as of `mkpasswd -m yescrypt`, never shown; without it the password is locked",
        ),
    ),
    "network": (
        _F("mode", FieldKind.TEXT, "`dhcp` or `static`", required=True),
        _F("interface", FieldKind.TEXT, "name that the interface gets; `lan0` by default"),
        _F("mac", FieldKind.TEXT, "hardware address of the interface; `{{ mac }}` by default"),
        _F(
            "addresses",
            FieldKind.TEXTS,
            "static: addresses with prefix, such as `{{ ip }}/24`",
            count_max=ADDRESSES_MAX,
        ),
        _F("gateway", FieldKind.TEXT, "static: address of the router"),
        _F("dns", FieldKind.TEXTS, "static: addresses of DNS servers", count_max=ADDRESSES_MAX),
        _F("search", FieldKind.TEXTS, "static: search domains", count_max=ADDRESSES_MAX),
    ),
    "files": (
        _F("path", FieldKind.TEXT, "absolute path", required=True),
        _F("content", FieldKind.TEXT, "content, text of at most 64 KiB", required=True),
        _F("mode", FieldKind.TEXT, "permissions in octal; `0644` by default"),
        _F("owner", FieldKind.TEXT, "`user:group`; `root:root` by default"),
        _F("secret", FieldKind.SWITCH, "a secret: `mode` is `0600` by default"),
    ),
    "first_boot": (
        _F("name", FieldKind.TEXT, "lower-case letters, digits and dashes", required=True),
        _F("content", FieldKind.TEXT, "script that starts with `#!`, text of at most 64 KiB", required=True),
        _F("order", FieldKind.INTEGER, "0 to 99, the lowest first; 50 by default"),
        _F(
            "timeout_s",
            FieldKind.INTEGER,
            f"seconds until it is ended, at most {SCRIPT_TIMEOUT_S_MAX}; {SCRIPT_TIMEOUT_S_DEFAULT} by default",
        ),
    ),
}
"""The fields of each table, by the table's name; empty for the template itself."""
