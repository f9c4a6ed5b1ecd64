"""Preview of the settings that a template gives one machine; secrets are hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from protocol.errors import ConfigurationError
from sender.daemon.patching.patch_machines import patch_machine, read_seed_template
from sender.patches.machine_settings import MachineSettings, settings_of
from sender.patches.seed import META_DATA, build_seed
from sender.patches.template import Template
from sender.store.records.machines import Machine
from sender.store.records.patch_inputs import SeedPreview

_HIDDEN: Final = "(secret)"


def preview_seed(text: str, machine: Machine, variables: Mapping[str, str]) -> SeedPreview:
    """Return what a template gives a machine; for a machine without valid settings, the problem.

    Raises:
        ConfigurationError: the template itself is invalid.
    """
    template = read_seed_template(text)
    described = patch_machine(machine, variables)
    files: dict[str, str] = {}
    hostname = problem = ""
    try:
        settings = settings_of(template, described)
        build_seed(settings)  # with its secrets, since the limits are theirs
        shown = _without_secrets(settings, template, described.variables)
        files = {
            name: content.decode() for name, content in build_seed(shown).files.items() if name != META_DATA
        }
        hostname = settings.hostname
    except ConfigurationError as error:
        problem = str(error)
    return SeedPreview(machine.machine_id, machine.name, described.machine_id, hostname, files, problem)


def _without_secrets(
    settings: MachineSettings, template: Template, variables: Mapping[str, str]
) -> MachineSettings:
    """Return the settings with password hashes, secret files and the values of secret variables hidden."""
    users = tuple(
        dataclasses.replace(user, password_hash=_HIDDEN if user.password_hash else "")
        for user in settings.users
    )
    files = tuple(
        dataclasses.replace(file, content=_HIDDEN) if file.secret else file for file in settings.files
    )
    secrets = sorted(
        filter(None, (variables.get(name, "") for name in template.secret_variables)), key=len, reverse=True
    )

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            for secret in secrets:
                value = value.replace(secret, _HIDDEN)
            return value
        if isinstance(value, Mapping):
            return {key: hidden(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(hidden(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: hidden(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return type(value)(**fields)
        return value

    shown = dataclasses.replace(settings, users=users, files=files)
    hidden_settings = hidden(shown) if secrets else shown
    assert isinstance(hidden_settings, MachineSettings)
    return hidden_settings
