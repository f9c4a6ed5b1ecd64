"""Request bodies for templates and variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sender.api.request_models.field_types import MachineId
from sender.api.request_models.request_body import RequestBody
from sender.patches.limits import CELL_BYTES_MAX, COLUMNS_MAX, STORED_TEMPLATE_BYTES_MAX
from sender.patches.machines_file import BUILT_IN_VARIABLES, is_variable_value
from sender.patches.variables import VARIABLE_NAME


def _template_bytes(text: str) -> str:
    if len(text.encode(errors="replace")) > STORED_TEMPLATE_BYTES_MAX:
        raise ValueError(
            f"it has more than {STORED_TEMPLATE_BYTES_MAX >> 10} KiB: put large files into the image"
        )
    return text


def _variables(given: dict[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if not VARIABLE_NAME.fullmatch(name):
            raise ValueError(
                f"{name[:40]!r} can't name a variable: use a letter, then at most 31 letters, digits and underscores"
            )
        if name in BUILT_IN_VARIABLES:
            raise ValueError(f"{name} comes from the machine itself: change the machine, or use another name")
        if not is_variable_value(value):
            raise ValueError(
                f"{name}: at most {CELL_BYTES_MAX} bytes, and no control characters or line breaks"
            )
    return {name: value for name, value in given.items() if value}


TemplateText = Annotated[str, AfterValidator(_template_bytes)]


class TemplateInput(RequestBody):
    """A room's template."""

    text: TemplateText = Field(
        examples=['hostname = "{{ name }}"\n'],
        description="The template, as TOML: see the template reference.",
    )


class PreviewInput(RequestBody):
    """A preview of what one machine gets."""

    machine_id: MachineId
    text: TemplateText | None = Field(
        default=None, description="A template that isn't saved yet; null for the room's."
    )


class VariablesInput(RequestBody):
    """The variables of a machine."""

    variables: Annotated[dict[str, str], Field(max_length=COLUMNS_MAX), AfterValidator(_variables)] = Field(
        examples=[{"ip": "10.1.2.7"}],
        description="Value of each variable; those that aren't given are removed.",
    )
