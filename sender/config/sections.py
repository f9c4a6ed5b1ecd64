"""The tables of the daemon's configuration file: keys, defaults, limits and descriptions.

These models are the only list of keys: the reference page and the check of the example file are derived from them.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import urllib.parse
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from protocol.constants import MULTICAST_TTL_DEFAULT, RECEIVER_COUNT_MAX, RECEIVER_TIMEOUT_S
from protocol.shared.units import parse_rate_bytes_per_s, parse_size_bytes
from sender.addresses import IpNetwork, parse_endpoint
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
    Networks,
    Paths,
    Ports,
    Rate,
    Remotes,
    Seconds,
    port_range,
)

GROUP_COUNT = 256
"""Groups from ``network.group_base`` on: many times the number of concurrent casts, so that two daemons that don't know
of each other rarely choose the same."""


SYSTEM_STATE_DIRECTORY = Path("/var/lib/diskcast")


class Section(BaseModel):
    """A table of the file: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def default_state_directory() -> Path:
    """Return the state directory of a daemon of this user that is configured without one."""
    return SYSTEM_STATE_DIRECTORY if os.geteuid() == 0 else user_state_directory()


def user_state_directory() -> Path:
    """Return the state directory of a daemon that a user other than root runs."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "diskcast"


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "diskcast"


def _documented(default: str, example: str) -> dict[str, Any]:
    """Return the reference's text for a default that depends on the machine or on other keys, and an example value."""
    return {"default_words": default, "example": example}


class ServerSection(Section):
    """The daemon itself: name, address and state."""

    name: Name = Field(
        default_factory=_default_name,
        description="Name of this daemon in history, logs and metrics. Daemons that share a database need "
        "different names.",
        json_schema_extra=_documented("the host name", '"rack1"'),
    )
    listen: Listen = Field(
        default=LISTEN_DEFAULT,
        description="Address and TCP port of the dashboard and the API. An address that other machines can reach "
        "speaks only HTTPS (TLS 1.3); a loopback address speaks HTTP.",
    )
    state_directory: ConfigPath = Field(
        default_factory=default_state_directory,
        description="Folder for the database, the cache and all other persistent state.",
        json_schema_extra=_documented(
            "/var/lib/diskcast; for users other than root ~/.local/state/diskcast", '"/var/lib/diskcast"'
        ),
    )
    database: DatabaseUrl = Field(
        default="",
        validate_default=False,
        repr=False,
        description="URL of the database. For several daemons that share one, use PostgreSQL: "
        "postgresql://USER@HOST/DATABASE.",
        json_schema_extra=_documented(
            "SQLite, diskcast.db in state_directory", '"postgresql://diskcast@db.example/diskcast"'
        ),
    )
    database_password_file: ConfigPath | None = Field(
        default=None,
        description="File whose first line is the password of the database's user; keeps it out of this file and the "
        "process list. With systemd's LoadCredential=: /run/credentials/diskcast.service/NAME.",
        json_schema_extra=_documented("none", '"/run/credentials/diskcast.service/database-password"'),
    )
    certificate: ConfigPath | None = Field(
        default=None,
        description="Certificate (PEM, with its chain) instead of the one that the daemon makes itself. Agents "
        "recognise either by its pin; for a certificate of your own authority they can use --ca instead.",
        json_schema_extra=_documented("certificate.pem in state_directory", '"/etc/diskcast/tls/cert.pem"'),
    )
    certificate_key: ConfigPath | None = Field(
        default=None,
        description="Private key of certificate (PEM), readable only by the daemon's user.",
        json_schema_extra=_documented("in the file of certificate", '"/etc/diskcast/tls/key.pem"'),
    )
    allowed_hosts: Hosts = Field(
        default=(),
        json_schema_extra=_documented("none", '["images.example", "10.0.0.1"]'),
        description="Host names and addresses that browsers, agents and clients may use for this daemon, besides the "
        "one in listen and those of the loopback interface. A daemon on the loopback address rejects all other names: "
        "list the name of a reverse proxy there. Elsewhere this list only adds names of pages that may send changes.",
    )
    trusted_proxies: Networks = Field(
        default=(),
        json_schema_extra=_documented("none", '["10.0.0.5", "fd00::/64"]'),
        description="Addresses of reverse proxies. Only their X-Forwarded-For is believed: limits and logs then apply "
        "to their clients. They may open as many connections as the daemon accepts, instead of half of them.",
    )
    enrolment: Literal["token", "approve"] = Field(
        default="token",
        description="Rule for machines that enrol: token: a valid token of the role enrol is enough. approve: an "
        "operator also approves each machine in the dashboard. A room can have a rule of its own.",
    )
    unknown_machines: Literal["off", "ask", "auto"] = Field(
        default="off",
        description="Rule for unknown machines that boot over the network: off: they boot from their disks. ask: they "
        "boot the live system and wait for an operator's approval. auto: they boot the live system and enrol. A room "
        "can have a rule of its own.",
    )
    sites: Names = Field(
        default=(),
        json_schema_extra=_documented("all", '["north"]'),
        description="Sites whose rooms this daemon serves, if several daemons share a database.",
    )

    @property
    def endpoint(self) -> tuple[str, int]:
        """Address and port to listen on; port 0 for any free port."""
        address, port = parse_endpoint(self.listen, LISTEN_PORT_DEFAULT)
        return str(address), port

    @property
    def loopback(self) -> bool:
        """True if only programs on this machine can reach the daemon."""
        return ipaddress.ip_address(self.endpoint[0]).is_loopback

    @property
    def proxy_networks(self) -> tuple[IpNetwork, ...]:
        """``trusted_proxies`` as networks."""
        return tuple(ipaddress.ip_network(text) for text in self.trusted_proxies)

    @property
    def database_shown(self) -> str:
        """The database's URL without its password, for messages."""
        parts = urllib.parse.urlsplit(self.database)
        if parts.password is None:
            return self.database
        user, _, host = parts.netloc.rpartition("@")
        return urllib.parse.urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))

    @pydantic.model_validator(mode="before")
    @classmethod
    def _check_removed(cls, data: object) -> object:
        if isinstance(data, dict) and "require_tokens" in data:
            raise ValueError("require_tokens no longer exists, since every daemon requires tokens: remove it")
        return data

    @pydantic.model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError(
                "certificate and certificate_key belong together: give both, or neither for a certificate that the "
                "daemon makes itself"
            )
        return self


class NetworkSection(Section):
    """The network of the rooms."""

    interface: str | None = Field(
        default=None,
        min_length=1,
        max_length=15,
        description="Network interface of the rooms, such as eth1; a room can name another.",
        json_schema_extra=_documented("the only usable one", '"eth1"'),
    )
    group_base: Group = Field(
        default="239.255.68.80",
        description=f"First of {GROUP_COUNT} multicast groups. Each cast has its own group, which stays the same if "
        "another daemon takes over.",
    )
    data_port: int = Field(default=7420, ge=1, le=65535, description="UDP port of all groups.")
    control_ports: Ports = Field(
        default="7421-7436",
        description="Ports for joins (TCP) and feedback (UDP) on the rooms' interface. Each running cast needs one, so "
        "the range limits the number of concurrent casts.",
    )
    rate_ceiling: Rate | None = Field(
        default=None,
        description="Limit in bits per second for all casts together, such as 900M.",
        json_schema_extra=_documented("no limit: each cast adapts to its room", '"900M"'),
    )
    ttl: int = Field(
        default=MULTICAST_TTL_DEFAULT,
        ge=0,
        le=255,
        description="Time to live: routers that datagrams may pass, plus one.",
    )

    @property
    def control_port_range(self) -> range:
        """Ports of the casts, in order."""
        return port_range(self.control_ports)

    @property
    def casts_at_once(self) -> int:
        """Most casts that can run at the same time."""
        return len(self.control_port_range)

    @property
    def rate_ceiling_bytes_per_s(self) -> float | None:
        """Limit for all casts together; None for no limit."""
        return None if self.rate_ceiling is None else parse_rate_bytes_per_s(self.rate_ceiling)

    @pydantic.model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.data_port in self.control_port_range:
            raise ValueError(
                f"data_port {self.data_port} is one of control_ports {self.control_ports}, and both use UDP: choose "
                "another data_port"
            )
        try:
            last = ipaddress.ip_address(self.group_base) + GROUP_COUNT - 1
        except ipaddress.AddressValueError:
            last = None
        if last is None or not last.is_multicast:
            raise ValueError(
                f"group_base {self.group_base} isn't the first of {GROUP_COUNT} multicast addresses: choose a lower one"
            )
        return self


class LibrarySection(Section):
    """The sources of images."""

    folders: Paths = Field(
        default=(),
        description="Folders to watch for .dci files.",
        json_schema_extra=_documented('["STATE_DIRECTORY/images"]', '["/var/lib/diskcast/images"]'),
    )
    scan_interval_s: Seconds = Field(
        default=2.0,
        description="Seconds between two scans of the folders. A changed file is verified before it can be cast.",
    )
    remotes: Remotes = Field(
        default=(),
        json_schema_extra=_documented("none", '["s3://golden-images/classroom/"]'),
        description="Remote images: http, https or s3 URLs of .dci files, or of a folder or prefix that ends in /. A "
        "cast fetches its image into the cache.",
    )
    cache_directory: ConfigPath = Field(
        default=Path(),
        description="Folder for copies of remote images.",
        json_schema_extra=_documented("cache in state_directory", '"/var/lib/diskcast/cache"'),
    )
    cache_size: CacheSize = Field(
        default="100GiB",
        description="Most space for these copies. If it is exceeded, the least recently used copy is removed.",
    )
    exports_size: CacheSize = Field(
        default="100GiB",
        description="Most space for exports to other formats, in a folder of the cache. If it is exceeded, the oldest "
        "export is removed.",
    )
    allow_unsandboxed: bool = Field(
        default=False,
        description="Convert uploaded images of other programs also where the kernel has no Landlock: a hostile image "
        "may then read files of the daemon.",
    )

    @property
    def cache_bytes(self) -> int:
        """``cache_size`` in bytes."""
        return parse_size_bytes(self.cache_size)

    @property
    def exports_bytes(self) -> int:
        """``exports_size`` in bytes."""
        return parse_size_bytes(self.exports_size)


class CastsSection(Section):
    """Defaults of all casts."""

    receiver_timeout_s: float = Field(
        default=RECEIVER_TIMEOUT_S,
        ge=0.5,
        le=3600,
        allow_inf_nan=False,
        description="Seconds of silence after which a machine is lost.",
    )
    resume_wait_s: Seconds = Field(
        default=30.0,
        description="Seconds that a cast waits for its machines to rejoin after a restart or a takeover. Then it "
        "continues with those that have rejoined.",
    )
    encrypt: bool = Field(
        default=False, description="Encrypt the data of every cast on the network, whatever its plan says."
    )


class CapturesSection(Section):
    """Captures of machines' disks."""

    rate_ceiling: Rate | None = Field(
        default=None,
        description="Limit in bits per second for all uploads together, such as 500M.",
        json_schema_extra=_documented("no limit", '"500M"'),
    )
    uploads_at_once: int = Field(
        default=4, ge=1, le=8, description="Uploads at the same time; further machines wait for their turn."
    )

    @property
    def rate_ceiling_bytes_per_s(self) -> float | None:
        """``rate_ceiling`` in bytes per second."""
        return None if self.rate_ceiling is None else parse_rate_bytes_per_s(self.rate_ceiling)


class WakeSection(Section):
    """Waking of machines, for rooms without settings of their own."""

    wave_size: int = Field(
        default=8,
        ge=1,
        le=RECEIVER_COUNT_MAX,
        description="Machines that are woken at the same time. All machines of a fuse that start at once can trip it.",
    )
    pause_s: float = Field(
        default=5.0,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="Seconds from one wave of machines to the next.",
    )


class HistorySection(Section):
    """The record of past casts and actions."""

    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Days after which ended casts and audit entries are removed.",
        json_schema_extra=_documented("never", "730"),
    )


class MetricsSection(Section):
    """Metrics for Prometheus."""

    retention_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds for which the metrics of an ended cast stay: long enough for a few scrapes.",
    )
    public: bool = Field(
        default=False, description="Serve /metrics without a token, even if the API requires one."
    )


class LogSection(Section):
    """The daemon's log."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="json: one object per line, for the journal. console: for people. auto: console on a terminal, "
        "otherwise json.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level to log."
    )
