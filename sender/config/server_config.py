"""The daemon's configuration: its keys, their defaults and limits, and reading it from a TOML file.

The models below are the only list of keys: the reference page and the check of the example file are made from them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tomllib
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from protocol.constants import MIB, MULTICAST_TTL_DEFAULT, RECEIVER_TIMEOUT_S
from protocol.errors import ConfigurationError
from protocol.shared.units import parse_rate_bytes_per_s, parse_size_bytes
from sender.addresses import parse_endpoint
from sender.config.errors import explain
from sender.config.values import (
    LISTEN_DEFAULT,
    LISTEN_PORT_DEFAULT,
    CacheSize,
    ConfigPath,
    DatabaseUrl,
    Group,
    Hosts,
    Listen,
    Name,
    Names,
    Paths,
    Ports,
    Rate,
    Remotes,
    Seconds,
    port_range,
)

CONFIG_BYTES_MAX = MIB
"""A configuration is a page of text; a disk image that was named by mistake isn't read into memory."""
SECRET_FILE_BYTES_MAX = 4096
GROUP_COUNT = 256
"""Groups from ``network.group_base`` on: many times the casts at once, so that two daemons that don't know of each
other rarely choose the same."""


class Section(BaseModel):
    """A table of the file: nothing unknown, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# -- the tables of the file ------------------------------------------------------------------------------------


def _default_state_directory() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/diskcast")
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "diskcast"


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "diskcast"


def _words(default: str, example: str) -> dict[str, Any]:
    """How the reference says a default that depends on the machine or on other keys, and a value that could be set."""
    return {"default_words": default, "example": example}


class ServerSection(Section):
    """The daemon itself: its name, its address, its state."""

    name: Name = Field(
        default_factory=_default_name,
        description="What this daemon calls itself in history, logs and metrics. Daemons that share a database need "
        "different names.",
        json_schema_extra=_words("the host name", '"rack1"'),
    )
    listen: Listen = Field(
        default=LISTEN_DEFAULT,
        description="Address and TCP port of the dashboard and the API. Any address but the loopback one demands "
        "tokens.",
    )
    state_directory: ConfigPath = Field(
        default_factory=_default_state_directory,
        description="Folder of the database, the cache and everything else that must survive a restart.",
        json_schema_extra=_words(
            "/var/lib/diskcast; for others than root ~/.local/state/diskcast", '"/var/lib/diskcast"'
        ),
    )
    database: DatabaseUrl = Field(
        default="",
        validate_default=False,
        repr=False,
        description="URL of the database. PostgreSQL, for several daemons that share one: "
        "postgresql://USER@HOST/DATABASE.",
        json_schema_extra=_words(
            "SQLite, diskcast.db in state_directory", '"postgresql://diskcast@db.example/diskcast"'
        ),
    )
    database_password_file: ConfigPath | None = Field(
        default=None,
        description="File whose first line is the password of the database's user, so that it is neither in this file "
        "nor in the process list. With systemd's LoadCredential=: /run/credentials/diskcast.service/NAME.",
        json_schema_extra=_words("none", '"/run/credentials/diskcast.service/database-password"'),
    )
    require_tokens: bool | None = Field(
        default=None,
        description="Whether every API call needs a token. It can't be false when listen is reachable from other "
        "machines.",
        json_schema_extra=_words("true unless listen is a loopback address", "true"),
    )
    allowed_hosts: Hosts = Field(
        default=(),
        json_schema_extra=_words("none", '["images.example", "10.0.0.1"]'),
        description="Names and addresses by which browsers, agents and clients may address this daemon, besides the "
        "one in listen and those of the loopback interface. Without tokens no other name is let in, which keeps pages "
        "of other sites out; with tokens any name is, unless some are listed here: then list all that are used, "
        "agents' too.",
    )
    sites: Names = Field(
        default=(),
        json_schema_extra=_words("all", '["north"]'),
        description="Sites whose rooms this daemon casts for, where several share a database.",
    )

    @property
    def endpoint(self) -> tuple[str, int]:
        """Address and port to listen on; port 0: any."""
        address, port = parse_endpoint(self.listen, LISTEN_PORT_DEFAULT)
        return str(address), port

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return ipaddress.ip_address(self.endpoint[0]).is_loopback

    @property
    def tokens_required(self) -> bool:
        """``require_tokens``, or else what the address demands."""
        return not self.loopback if self.require_tokens is None else self.require_tokens

    @property
    def database_shown(self) -> str:
        """The database's URL without its password, for messages."""
        parts = urllib.parse.urlsplit(self.database)
        if parts.password is None:
            return self.database
        user, _, host = parts.netloc.rpartition("@")
        return urllib.parse.urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))

    @pydantic.model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.require_tokens is False and not self.loopback:
            raise ValueError(
                f"require_tokens = false can't go with listen = {self.listen!r}, which other machines reach: anybody "
                f"there could overwrite every disk. Remove require_tokens, or listen on {LISTEN_DEFAULT}"
            )
        return self


class NetworkSection(Section):
    """The network that is cast to."""

    interface: str | None = Field(
        default=None,
        min_length=1,
        max_length=15,
        description="Network interface of the rooms, for example eth1; a room may name another.",
        json_schema_extra=_words("the only one that could do", '"eth1"'),
    )
    group_base: Group = Field(
        default="239.255.68.80",
        description=f"First of {GROUP_COUNT} multicast groups: each cast has one of them to itself, the same whichever "
        "daemon runs it.",
    )
    data_port: int = Field(default=7420, ge=1, le=65535, description="UDP port of all groups.")
    control_ports: Ports = Field(
        default="7421-7436",
        description="Ports of the casts, TCP for joins and UDP for feedback, on the rooms' interface: one for each "
        "cast that runs at the same time, so that this is also their number.",
    )
    rate_ceiling: Rate | None = Field(
        default=None,
        description="Bits per second that all casts together may send, for example 900M.",
        json_schema_extra=_words("no ceiling, each cast finds what its room can take", '"900M"'),
    )
    ttl: int = Field(
        default=MULTICAST_TTL_DEFAULT, ge=0, le=255, description="Routers that datagrams may pass, plus one."
    )

    @property
    def control_port_range(self) -> range:
        """Ports of the casts, in order."""
        return port_range(self.control_ports)

    @property
    def casts_at_once(self) -> int:
        """Casts that can run at the same time."""
        return len(self.control_port_range)

    @property
    def rate_ceiling_bytes_per_s(self) -> float | None:
        """The shared ceiling; None: there is none."""
        return None if self.rate_ceiling is None else parse_rate_bytes_per_s(self.rate_ceiling)

    @pydantic.model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.data_port in self.control_port_range:
            raise ValueError(
                f"data_port {self.data_port} is one of control_ports {self.control_ports}, and both need its UDP: "
                "choose another data_port"
            )
        try:
            last = ipaddress.ip_address(self.group_base) + GROUP_COUNT - 1
        except ipaddress.AddressValueError:
            last = None
        if last is None or not last.is_multicast:
            raise ValueError(
                f"group_base {self.group_base} has no {GROUP_COUNT} multicast addresses from it on: choose a lower one"
            )
        return self


class LibrarySection(Section):
    """Where images come from."""

    folders: Paths = Field(
        default=(),
        description="Folders that are watched for .dci files.",
        json_schema_extra=_words('["STATE_DIRECTORY/images"]', '["/var/lib/diskcast/images"]'),
    )
    scan_interval_s: Seconds = Field(
        default=2.0,
        description="How often the folders are looked at; a changed file is checked before it is offered.",
    )
    remotes: Remotes = Field(
        default=(),
        json_schema_extra=_words("none", '["s3://golden-images/classroom/"]'),
        description="Images elsewhere: http, https or s3 addresses of .dci files, or of a folder or prefix that ends "
        "in /. They are fetched into the cache when a cast needs them.",
    )
    cache_directory: ConfigPath = Field(
        default=Path(),
        description="Folder of the fetched copies.",
        json_schema_extra=_words("cache in state_directory", '"/var/lib/diskcast/cache"'),
    )
    cache_size: CacheSize = Field(
        default="100GiB",
        description="What the copies may take; beyond it the one that wasn't used for longest goes first.",
    )

    @property
    def cache_bytes(self) -> int:
        """``cache_size`` in bytes."""
        return parse_size_bytes(self.cache_size)


class CastsSection(Section):
    """What holds for all casts."""

    receiver_timeout_s: float = Field(
        default=RECEIVER_TIMEOUT_S,
        ge=0.5,
        le=3600,
        allow_inf_nan=False,
        description="Give up a machine that was silent for this long.",
    )
    resume_wait_s: Seconds = Field(
        default=30.0,
        description="How long a cast that goes on after a restart or a take-over waits for its machines to join "
        "again before it goes on with those that have.",
    )


class HistorySection(Section):
    """The record of what was done."""

    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Ended casts and audit entries that are older are removed.",
        json_schema_extra=_words("never", "730"),
    )


class MetricsSection(Section):
    """What Prometheus sees."""

    retention_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="How long an ended cast's metrics stay: long enough to be scraped a few times.",
    )
    public: bool = Field(
        default=False, description="Serve /metrics without a token, even where everything else needs one."
    )


class LogSection(Section):
    """What the daemon says while it runs."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="json: one object a line, for the journal. console: for people. auto: console on a terminal, json "
        "elsewhere.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important that is still written."
    )


class ServerConfig(Section):
    """Everything that the daemon can be told, complete and checked.

    ``load_config`` makes it; ``ServerConfig()`` is the configuration of an empty file.
    """

    server: ServerSection = Field(default_factory=ServerSection)
    network: NetworkSection = Field(default_factory=NetworkSection)
    library: LibrarySection = Field(default_factory=LibrarySection)
    casts: CastsSection = Field(default_factory=CastsSection)
    history: HistorySection = Field(default_factory=HistorySection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    log: LogSection = Field(default_factory=LogSection)

    @pydantic.model_validator(mode="after")
    def _fill_in(self) -> Self:
        """Set what follows from the state directory."""
        state = self.server.state_directory
        if not self.server.database:
            database = f"sqlite:///{state.absolute() / 'diskcast.db'}"
            self._put("server", database=database)
        changes: dict[str, object] = {}
        if not self.library.folders:
            changes["folders"] = (state / "images",)
        if self.library.cache_directory == Path():
            changes["cache_directory"] = state / "cache"
        self._put("library", **changes)
        return self

    @pydantic.model_validator(mode="after")
    def _check_ports(self) -> Self:
        port = self.server.endpoint[1]
        if port in self.network.control_port_range:
            raise ValueError(
                f"server.listen uses port {port}, which is one of network.control_ports {self.network.control_ports}: "
                "choose another for one of them"
            )
        return self

    def _put(self, section: str, **changes: object) -> None:
        """Replace a section within validation, before anybody has seen this object."""
        self.__dict__[section] = getattr(self, section).model_copy(update=changes)


def sections() -> dict[str, type[Section]]:
    """The tables of the file in their order, for whoever lists the keys."""
    found = {name: field.annotation for name, field in ServerConfig.model_fields.items()}
    return {
        name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Section)
    }


# -- reading the file ------------------------------------------------------------------------------------------


def load_config(path: Path | None, overrides: Mapping[str, object] | None = None) -> ServerConfig:
    """The configuration: a file's keys, what overrides them, and defaults for the rest.

    Args:
        path: TOML file; None: no file. Relative paths in it start from its folder.
        overrides: values of command line options by key, e.g. ``{"server.listen": "127.0.0.1:7500"}``; None is an
            option that wasn't given.

    Raises:
        ConfigurationError: the file can't be read or a value can't be used; the message names file, key, cause and
            mend.
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
            f"the configuration {path} can't be read: {error.strerror}. Give an existing file with --config, or none "
            "for the defaults"
        ) from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigurationError(f"{path} is no configuration: it's larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f'{path} isn\'t TOML: {error}. Texts need quotes: key = "text"') from error


def _root_paths(document: dict[str, Any], folder: Path) -> None:
    """Make relative paths start from the file's folder, wherever the daemon was started."""

    def root(value: object) -> object:
        return str(folder / Path(value).expanduser()) if isinstance(value, str) and value else value

    for section, keys in _PATH_KEYS.items():
        table = document.get(section)
        if isinstance(table, dict):
            for key in keys & table.keys():
                value = table[key]
                table[key] = [root(item) for item in value] if isinstance(value, list) else root(value)


_PATH_KEYS = {
    "server": {"state_directory", "database_password_file"},
    "library": {"folders", "cache_directory"},
}


def _with_password(config: ServerConfig, origin: str) -> ServerConfig:
    """Put the password from ``database_password_file`` into the database's URL, in memory only."""
    path = config.server.database_password_file
    if path is None:
        return config
    where = f"{origin}: server.database_password_file"
    parts = urllib.parse.urlsplit(config.server.database)
    if parts.password is not None or not parts.username:
        raise ConfigurationError(
            f"{where} goes with a database URL that has a user and no password: postgresql://USER@HOST/DATABASE"
        )
    try:
        with path.open("rb") as file:
            data = file.read(SECRET_FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"{where}: {path} can't be read: {error.strerror}. Let the daemon's user read it"
        ) from error
    secret = data.decode(errors="replace").partition("\n")[0].strip()
    if not secret:
        raise ConfigurationError(
            f"{where}: {path} has nothing in its first line, where the password should be"
        )
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user}:{urllib.parse.quote(secret, safe='')}@{host}"
    server = config.server.model_copy(
        update={"database": urllib.parse.urlunsplit(parts._replace(netloc=netloc))}
    )
    return config.model_copy(update={"server": server})
