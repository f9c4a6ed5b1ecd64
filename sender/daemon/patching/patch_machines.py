"""Machines of the database as machines of patches: the id that a patch is for, and their variables."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from protocol.errors import ConfigurationError
from protocol.patch.machine_patch import is_machine_id
from sender.patches.machines_file import PatchMachine
from sender.patches.template import Template, read_template
from sender.store.machines.identity import identity_key
from sender.store.records.machines import Machine


def read_seed_template(text: str) -> Template:
    """Return a template whose patches the daemon can make.

    Raises:
        ConfigurationError: it is invalid, or its settings go into a filesystem of the image, which tools must edit.
    """
    template = read_template(text)
    if template.filesystem is not None:
        raise ConfigurationError(
            "filesystem: a daemon writes settings into the seed partition only: build the patches with `diskcast "
            "patches build`, sign them, and upload them with `diskcast rooms patch-set upload`, or remove the table"
        )
    return template


def patch_machine_id(machine: Machine) -> str:
    """Return the id that a patch of this machine is for, one that its agent reads from its own hardware.

    A serial number stays when cards are changed. Those that vendors leave in all machines of a model identify none. The
    name is the last choice: a compromised daemon could exchange the patches of two machines that have nothing else.
    """
    serial = machine.serial if identity_key(machine.serial) else ""
    asset_tag = machine.asset_tag if identity_key(machine.asset_tag) else ""
    candidates = (serial, *machine.macs[:1], asset_tag, machine.name)
    return next(filter(is_machine_id, candidates), machine.machine_id)


def patch_machine(machine: Machine, variables: Mapping[str, str]) -> PatchMachine:
    """Return the machine with its built-in variables and its own ones."""
    machine_id = patch_machine_id(machine)
    built_in = {
        "name": machine.name,
        "machine_id": machine_id,
        "mac": machine.macs[0] if machine.macs else "",
        "serial": machine.serial,
        "asset_tag": machine.asset_tag,
        "room": machine.room_id or "",
        "position": machine.position,
    }
    return PatchMachine(machine.name, machine_id, MappingProxyType(dict(variables) | built_in))
