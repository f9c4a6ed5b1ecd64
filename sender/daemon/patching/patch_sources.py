"""Sources of patches: templates of rooms, from which the daemon makes them, and signed sets, which have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from protocol.errors import ConfigurationError
from protocol.patch.machine_patch import MachinePatch
from sender.daemon.patching.patch_machines import patch_machine
from sender.patches.machine_settings import settings_of
from sender.patches.patch_builder import SeedPlace, build_machine_patch
from sender.patches.patch_bundle import PatchBundle
from sender.patches.seed import build_seed
from sender.patches.template import Template
from sender.store.records.machines import Machine


class PatchSource(Protocol):
    """A source of patches; used in one thread at a time.

    Attributes:
        set_file: content of the signed set's file; empty without one.
    """

    set_file: bytes

    def patch_of(self, machine: Machine, variables: Mapping[str, str]) -> MachinePatch | None:
        """Return the patch of a machine; None for the image alone.

        Raises:
            ConfigurationError: it has none; the message is for people.
        """


class TemplateSource:
    """Patches that the daemon makes from templates and variables."""

    set_file = b""

    def __init__(self, place: SeedPlace, templates: Mapping[str, Template], room_id: str | None) -> None:
        """Make patches.

        Args:
            place: the seed partition of the image.
            templates: the templates of rooms, by room.
            room_id: the room of the cast; None to use the template of each machine's own room.
        """
        self._place = place
        self._templates = templates
        self._room_id = room_id
        self._hostname_owners: dict[str, Machine] = {}

    def patch_of(self, machine: Machine, variables: Mapping[str, str]) -> MachinePatch | None:
        """Return the patch that gives a machine the settings of its room's template."""
        template = self._templates.get(self._room_id or machine.room_id or "")
        if template is None:
            return None
        described = patch_machine(machine, variables)
        settings = settings_of(template, described)
        owner = self._hostname_owners.setdefault(settings.hostname.lower(), machine)
        if owner.machine_id != machine.machine_id:
            raise ConfigurationError(
                f"hostname, machine {machine.name}: {settings.hostname!r} is the host name of {owner.name} too: "
                "use a variable such as {{ name }}"
            )
        return build_machine_patch(self._place, described, build_seed(settings))


class SetSource:
    """Patches of a signed set that an operator uploaded."""

    def __init__(self, bundle: PatchBundle) -> None:
        """Hand out the patches of ``bundle``."""
        self.set_file = bundle.set_file
        self._bundle = bundle

    def patch_of(self, machine: Machine, _variables: Mapping[str, str]) -> MachinePatch | None:
        """Return the patch for one of the machine's ids; the name is the last one."""
        for machine_id in (machine.serial, *machine.macs, machine.asset_tag, machine.name):
            if machine_id in self._bundle.patches:
                return self._bundle.patches[machine_id]
        raise ConfigurationError(
            f"the signed set {self._bundle.patch_set.name!r} has no patch for {machine.name}: build and sign it again "
            "with this machine, and upload it"
        )
