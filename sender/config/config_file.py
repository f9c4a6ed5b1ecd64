"""Read the daemon's configuration from a TOML file and command line options."""

from __future__ import annotations

import tomllib
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from protocol.constants import MIB
from protocol.errors import ConfigurationError
from sender.config.errors import explain
from sender.config.server_config import ServerConfig, sections

CONFIG_BYTES_MAX = MIB
"""A configuration is a page of text; this keeps a disk image named by mistake out of memory."""
SECRET_FILE_BYTES_MAX = 4096


def load_config(path: Path | None, overrides: Mapping[str, object] | None = None) -> ServerConfig:
    """Return the configuration: the keys of a file, overrides, and defaults for the rest.

    Args:
        path: TOML file; None for no file. Relative paths in it start from its folder.
        overrides: values of command line options by key, such as ``{"server.listen": "127.0.0.1:7500"}``; None for an
            option that isn't given.

    Raises:
        ConfigurationError: the file can't be read or a value can't be used; the message names file, key, cause and
            fix.
    """
    document = {} if path is None else _read_document(path)
    if path is not None:
        _root_paths(document, path.absolute().parent)
    origins: dict[str, str] = {}
    for key, value in (overrides or {}).items():
        if value is not None:
            section, _, name = key.partition(".")
            table = document.setdefault(section, {})
            if isinstance(table, dict):
                table[name] = value
                origins[key] = "command line"
    try:
        config = ServerConfig.model_validate(document)
    except pydantic.ValidationError as error:
        raise ConfigurationError(explain(error, sections(), str(path or "configuration"), origins)) from error
    return _with_password(config, str(path or "configuration"))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"can't read the configuration {path}: {error.strerror}; name an existing file with --config, or none "
            "for the defaults"
        ) from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigurationError(
            f"{path} isn't a configuration: it's larger than {CONFIG_BYTES_MAX} bytes; name another with --config"
        )
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: not UTF-8; save the file as UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f'{path} isn\'t TOML: {error}; strings need quotes: key = "text"') from error


def _root_paths(document: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, starting from the file's folder."""

    def root(value: object) -> object:
        return str(folder / Path(value).expanduser()) if isinstance(value, str) and value else value

    for section, keys in _PATH_KEYS.items():
        table = document.get(section)
        if isinstance(table, dict):
            for key in keys & table.keys():
                value = table[key]
                table[key] = [root(item) for item in value] if isinstance(value, list) else root(value)


_PATH_KEYS = {
    "server": {"state_directory", "database_password_file", "certificate", "certificate_key"},
    "library": {"folders", "cache_directory"},
}


def _with_password(config: ServerConfig, origin: str) -> ServerConfig:
    """Insert the password from ``database_password_file`` into the database's URL, in memory only."""
    path = config.server.database_password_file
    if path is None:
        return config
    where = f"{origin}: server.database_password_file"
    parts = urllib.parse.urlsplit(config.server.database)
    if parts.password is not None or not parts.username:
        raise ConfigurationError(
            f"{where} needs a database URL with a user and without a password: postgresql://USER@HOST/DATABASE"
        )
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"{where}: can't read {path}: {error.strerror}; let the daemon's user read it"
        ) from error
    secret = data.decode(errors="replace").partition("\n")[0].strip()
    if not secret:
        raise ConfigurationError(f"{where}: the first line of {path} is empty: write the password there")
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user}:{urllib.parse.quote(secret, safe='')}@{host}"
    server = config.server.model_copy(
        update={"database": urllib.parse.urlunsplit(parts._replace(netloc=netloc))}
    )
    return config.model_copy(update={"server": server})
