"""The files of a NoCloud seed, from which cloud-init configures one machine at its first boot.

All three are JSON, which is YAML: no value of a machine can change their structure.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from typing import Final

from blake3 import blake3

from protocol.errors import ConfigurationError
from sender.patches.first_boot import script_commands, script_files
from sender.patches.limits import SEED_CONTENT_BYTES_MAX
from sender.patches.machine_settings import MachineSettings
from sender.patches.template import FileEntry, NetworkEntry, UserEntry

CLOUD_CONFIG: Final = "#cloud-config\n"
META_DATA, USER_DATA, NETWORK_CONFIG = "meta-data", "user-data", "network-config"
_ROOT: Final = "root:root"
_INSTANCE_DIGITS: Final = 32
_ADD_LOCALE: Final = (
    *("cloud-init-per", "instance", "diskcast-locale", "sh", "-c"),
    "[ ! -f /etc/locale.gen ] || awk -v name=\"$0\" '$1 == name' /usr/share/i18n/SUPPORTED >>/etc/locale.gen",
)
"""Debian's locale-gen makes the locales of this file only, and without it cloud-init's module fails."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seed:
    """The files of one machine's seed, which may hold secrets.

    Attributes:
        instance_id: cloud-init's id of this machine with these settings: with other settings it runs again.
        files: content by file name.
    """

    instance_id: str
    files: dict[str, bytes] = dataclasses.field(repr=False)


def build_seed(settings: MachineSettings) -> Seed:
    """Return the seed of a machine; equal settings give equal bytes.

    Raises:
        ConfigurationError: the settings contradict each other, are too large together, or aren't for a seed.
    """
    if settings.filesystem is not None:
        raise ConfigurationError(
            "filesystem: such patches are made by `diskcast patches build` only: remove [filesystem] for settings in "
            "the seed partition"
        )
    user_data = CLOUD_CONFIG + _yaml(_user_data(settings))
    files = {USER_DATA: user_data.encode()}
    if settings.network is not None:
        files[NETWORK_CONFIG] = _yaml(_network_config(settings.network)).encode()
    content = b"\0".join([settings.machine_id.encode(), *(files[name] for name in sorted(files))])
    instance_id = f"diskcast-{blake3(content).hexdigest()[:_INSTANCE_DIGITS]}"
    meta_data = {"instance-id": instance_id, "local-hostname": settings.hostname}
    files[META_DATA] = _yaml(meta_data).encode()
    size_bytes = sum(map(len, files.values()))
    if size_bytes > SEED_CONTENT_BYTES_MAX:
        raise ConfigurationError(
            f"machine {settings.hostname}: its files, scripts and other settings have {size_bytes} bytes, more than "
            f"the {SEED_CONTENT_BYTES_MAX >> 20} MiB of a seed: put large files into the image"
        )
    return Seed(instance_id, dict(sorted(files.items())))


def _user_data(settings: MachineSettings) -> dict[str, object]:
    config: dict[str, object] = {"hostname": settings.hostname, "preserve_hostname": False}
    if settings.domain:
        config["fqdn"] = f"{settings.hostname}.{settings.domain}"
    config["manage_etc_hosts"] = "localhost"  # sudo and mail programs look their own name up
    if settings.locale:
        config["locale"] = settings.locale
        config["bootcmd"] = [[*_ADD_LOCALE, settings.locale]]
    if settings.timezone:
        config["timezone"] = settings.timezone
    if settings.users:
        config["users"] = [_user(user) for user in settings.users]
    files = [_file(file) for file in settings.files] + script_files(settings.first_boot)
    if files:
        config["write_files"] = files
    if settings.first_boot:
        config["runcmd"] = script_commands(settings.first_boot)
    for key, value in settings.user_data.items():
        config[key] = _merged(settings, key, config.get(key), value)
    return config


def _merged(settings: MachineSettings, key: str, declared: object, added: object) -> object:
    if declared is None:
        return added
    if isinstance(declared, list) and isinstance(added, list):
        return declared + added
    raise ConfigurationError(
        f"user_data.{key}, machine {settings.hostname}: diskcast sets {key} too: declare it outside of user_data"
    )


def _user(user: UserEntry) -> dict[str, object]:
    entry: dict[str, object] = {"name": user.name, "shell": user.shell, "lock_passwd": not user.password_hash}
    if user.full_name:
        entry["gecos"] = user.full_name
    if user.groups:
        entry["groups"] = list(user.groups)
    if user.ssh_keys:
        entry["ssh_authorized_keys"] = list(user.ssh_keys)
    if user.password_hash:
        entry["hashed_passwd"] = user.password_hash  # also for a user that the image has
    return entry


def _file(file: FileEntry) -> dict[str, object]:
    entry: dict[str, object] = {"path": file.path, "content": file.content, "permissions": file.mode}
    entry["owner"] = file.owner
    if file.owner != _ROOT:
        entry["defer"] = True  # its owner may be a user that is made after the other files
    return entry


def _network_config(network: NetworkEntry) -> dict[str, object]:
    """Return a network configuration of version 2, which cloud-init writes for the network program of the image."""
    interface: dict[str, object] = {
        "match": {"macaddress": network.mac},
        # ifupdown knows interfaces by name alone.
        "set-name": network.interface,
        "dhcp4": False,
        "addresses": list(network.addresses),
    }
    if network.gateway:
        # As a route, cloud-init would write a command of net-tools for ifupdown, which Debian doesn't install.
        version = ipaddress.ip_address(network.gateway).version
        interface[f"gateway{version}"] = network.gateway
    if network.dns or network.search:
        servers: dict[str, object] = {}
        if network.dns:
            servers["addresses"] = list(network.dns)
        if network.search:
            servers["search"] = list(network.search)
        interface["nameservers"] = servers
    return {"version": 2, "ethernets": {network.interface: interface}}


def _yaml(value: object) -> str:
    """Return JSON that every YAML parser reads as the same values.

    YAML has no pairs of surrogates, and breaks lines at some letters that JSON leaves as they are.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
    return (
        "".join(
            letter if " " <= letter <= "~" or letter == "\n" or letter > "\uffff" else f"\\u{ord(letter):04x}"
            for letter in text
        )
        + "\n"
    )
