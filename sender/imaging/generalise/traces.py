"""The files that identify one machine: what is removed from an image, one row per kind of file.

The rows follow virt-sysprep, systemd's "Safely Building Images" and ``cloud-init clean``.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Final

GENERALISED_VERSION: Final = 1
"""Value of the manifest's key ``generalised``; raised when a later version removes more."""


class TraceKind(enum.StrEnum):
    """A kind of traces of one machine."""

    MACHINE_ID = "machine-id"
    SSH_HOST_KEYS = "ssh-host-keys"
    DHCP_LEASES = "dhcp-leases"
    NETWORK = "network"
    LOGS = "logs"
    SHELL_HISTORIES = "shell-histories"
    CLOUD_INIT = "cloud-init"
    RANDOM_SEED = "random-seed"
    MAIL = "mail"
    CRASH_DUMPS = "crash-dumps"
    TEMPORARY_FILES = "temporary-files"
    SWAP = "swap"
    JOURNAL = "journal"
    FREE_SPACE = "free-space"


class Action(enum.StrEnum):
    """The change of a file or range."""

    REMOVED = "removed"
    EMPTIED = "emptied"
    ZEROED = "zeroed"


@dataclasses.dataclass(frozen=True, slots=True)
class FileRule:
    """Files to remove.

    Attributes:
        pattern: absolute path; ``*`` within one part. A last part ``**`` means regular files in this folder and all
            below it. Symbolic links are never followed.
        everything: also folders with their content, links and special files; by default regular files only.
        containing: only files with this in their first 64 KiB.
        except_names: names in the last part that stay.
    """

    kind: TraceKind
    pattern: str
    action: Action = Action.REMOVED
    everything: bool = False
    containing: re.Pattern[bytes] | None = None
    except_names: frozenset[str] = frozenset()


_MAC: Final = rb"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}"
_HOME_FILES: Final = (
    ".ash_history",
    ".bash_history",
    ".history",
    ".ksh_history",
    ".lesshst",
    ".mysql_history",
    ".node_repl_history",
    ".psql_history",
    ".python_history",
    ".rediscli_history",
    ".sh_history",
    ".sqlite_history",
    ".viminfo",
    ".wget-hsts",
    ".zsh_history",
    ".local/share/fish/fish_history",
)
HOMES: Final = ("/root", "/home/*")


def _removed(kind: TraceKind, *patterns: str, everything: bool = False) -> list[FileRule]:
    return [FileRule(kind, pattern, everything=everything) for pattern in patterns]


RULES: Final = (
    FileRule(TraceKind.MACHINE_ID, "/etc/machine-id", Action.EMPTIED),
    # Not emptied: systemd makes a link to the other one where it is missing, and D-Bus refuses an empty file.
    FileRule(TraceKind.MACHINE_ID, "/var/lib/dbus/machine-id"),
    *_removed(TraceKind.SSH_HOST_KEYS, "/etc/ssh/ssh_host_*"),
    *_removed(
        TraceKind.DHCP_LEASES,
        "/var/lib/dhcp/**",
        "/var/lib/dhclient/**",
        "/var/lib/dhcpcd/**",
        "/var/lib/wicked/lease-*",
        "/var/lib/NetworkManager/*.lease",
        "/var/lib/NetworkManager/dhclient-*.conf",
    ),
    *_removed(
        TraceKind.NETWORK,
        "/etc/udev/rules.d/*-persistent-net.rules",
        "/etc/netplan/50-cloud-init.yaml",
        "/etc/network/interfaces.d/50-cloud-init",
        "/etc/network/interfaces.d/50-cloud-init.cfg",
        "/etc/systemd/network/10-cloud-init-*.network",
        "/etc/systemd/network/50-cloud-init-*.link",
        "/etc/NetworkManager/system-connections/cloud-init-*.nmconnection",
        "/var/lib/NetworkManager/secret_key",
        "/var/lib/NetworkManager/seen-bssids",
        "/var/lib/NetworkManager/timestamps",
    ),
    FileRule(
        TraceKind.NETWORK,
        "/etc/NetworkManager/system-connections/*",
        containing=re.compile(rb"^\s*mac-address\s*=\s*" + _MAC, re.MULTILINE),
    ),
    *_removed(
        TraceKind.LOGS,
        "/var/log/**",
        "/var/account/pacct*",
        "/var/lib/logrotate.status",
        "/var/lib/logrotate/status",
        "/var/lib/logrotate/logrotate.status",
        "/root/anaconda-ks.cfg",
        "/root/anaconda-post.log",
        "/root/initial-setup-ks.cfg",
        "/root/install.log",
        "/root/install.log.syslog",
        "/root/original-ks.cfg",
    ),
    *_removed(
        TraceKind.LOGS, "/var/log/journal/*", everything=True
    ),  # folders are named after the machine-id
    *_removed(TraceKind.SHELL_HISTORIES, *(f"{home}/{name}" for home in HOMES for name in _HOME_FILES)),
    FileRule(
        TraceKind.CLOUD_INIT,
        "/var/lib/cloud/*",
        everything=True,
        except_names=frozenset({"seed", "scripts"}),  # put there by the maker of the image
    ),
    *_removed(
        TraceKind.RANDOM_SEED,
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/credential.secret",
        "/etc/random-seed",
        "/var/lib/misc/random-seed",
        "/var/lib/random-seed",
        "/var/lib/urandom/random-seed",
    ),
    *_removed(TraceKind.MAIL, "/var/mail/*", "/var/spool/mail/*"),
    *_removed(TraceKind.CRASH_DUMPS, "/var/crash/*", "/var/lib/systemd/coredump/*", everything=True),
    *_removed(TraceKind.TEMPORARY_FILES, "/tmp/*", "/var/tmp/*", everything=True),  # noqa: S108  of the image
)

UNINITIALIZED: Final = b"uninitialized"
"""Content of ``/etc/machine-id`` in images that are already generalised (machine-id(5))."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remark:
    """Files that are tied to one machine and that an administrator wrote: they are reported, not changed."""

    pattern: str
    containing: re.Pattern[bytes]
    text: str


REMARKS: Final = (
    Remark(
        "/etc/netplan/*.yaml",
        re.compile(rb"^\s*macaddress\s*:\s*[\"']?" + _MAC, re.MULTILINE),
        "names the address of a network card",
    ),
    Remark(
        "/etc/systemd/network/*",
        re.compile(rb"^\s*(?:Permanent)?MACAddress\s*=\s*" + _MAC, re.MULTILINE),
        "names the address of a network card",
    ),
    Remark(
        "/etc/sysconfig/network-scripts/ifcfg-*",
        re.compile(rb"^\s*HWADDR\s*=\s*[\"']?" + _MAC, re.MULTILINE),
        "names the address of a network card",
    ),
    Remark(
        "/etc/iscsi/initiatorname.iscsi",
        re.compile(rb"^\s*InitiatorName\s*=", re.MULTILINE),
        "has the iSCSI name of one machine",
    ),
    Remark("/etc/krb5.keytab", re.compile(rb"\A\x05"), "has the domain account of one machine"),
)

SSH_KEY_MAKERS: Final = (
    "/usr/bin/cloud-init",
    *(
        f"{folder}/systemd/system/{name}"
        for folder in ("/etc", "/lib", "/usr/lib")
        for name in ("*ssh*key*", "*keygen*")
    ),
    "/etc/init.d/*ssh*key*",
    "/etc/runlevels/*/sshd",  # OpenRC's sshd makes missing keys
)
"""Programs and units that make missing SSH host keys at boot; Debian's sshd doesn't start without keys."""
