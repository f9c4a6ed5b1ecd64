"""Variables of a template: ``{{ name }}`` becomes a machine's value, and nothing else is ever executed.

``{{{{`` stands for two literal braces.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from protocol.errors import ConfigurationError
from sender.patches.limits import TEXT_BYTES_MAX

VARIABLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TOKEN: Final = re.compile(r"\{\{\{\{|\{\{[ \t]*([a-z][a-z0-9_]{0,31})[ \t]*\}\}|\{\{")
_SCRIPT_SAFE: Final = re.compile(r"[A-Za-z0-9 ._:/@+,=%-]*")
_SHOWN_CHARS: Final = 64
_HIDDEN: Final = "(secret)"
"""Stands for a value that no message may show."""


@dataclasses.dataclass(frozen=True, slots=True)
class Filler:
    """Fills the variables of one machine in; every message names the place in the template and the machine.

    Attributes:
        machine_name: the machine's name.
        values: its variables.
        secrets: names of variables whose values are never shown.
    """

    machine_name: str
    values: Mapping[str, str] = dataclasses.field(repr=False)
    secrets: Collection[str] = ()

    def fill(self, place: str, text: str, *, for_script: bool = False) -> str:
        """Return ``text`` with this machine's values.

        Args:
            place: the place in the template, for messages.
            text: text of the template.
            for_script: refuse values that a shell could take for more than one word's letters: a machine reports its
                serial number itself.

        Raises:
            ConfigurationError: a variable is unknown, empty or misspelt, or the result is too long.
        """

        def value_of(token: re.Match[str]) -> str:
            if token[0] == "{{{{":
                return "{{"
            if token[1] is None:
                raise self.error(
                    place, "`{{` starts no variable: write {{ name }}, or {{{{ for two braces as they are"
                )
            return self._value(place, token[1], for_script=for_script)

        result = _TOKEN.sub(value_of, text)
        if len(result.encode()) > TEXT_BYTES_MAX:
            raise self.error(
                place, f"it has more than {TEXT_BYTES_MAX >> 10} KiB: shorten it, or put it into the image"
            )
        return result

    def checked(self, place: str, text: str, is_valid: Callable[[str], object], rule: str) -> str:
        """Return the filled text if it is valid, or raise an error that states the rule."""
        result = self.fill(place, text)
        if not is_valid(result):
            raise self.error(place, f"{self.shown(text, result)} can't be used: {rule}")
        return result

    def error(self, place: str, reason: str) -> ConfigurationError:
        """Return the error of one place for this machine."""
        return ConfigurationError(f"{place}, machine {self.machine_name}: {reason}")

    def shown(self, text: str, result: str) -> str:
        """Return a value for a message, unless it holds a secret."""
        used = {token[1] for token in _TOKEN.finditer(text) if token[1]}
        if used & set(self.secrets):
            return _HIDDEN
        return repr(result if len(result) <= _SHOWN_CHARS else result[:_SHOWN_CHARS] + "…")

    def _value(self, place: str, name: str, *, for_script: bool) -> str:
        if name not in self.values:
            near = difflib.get_close_matches(name, self.values, 1)
            hint = (
                f"did you mean {near[0]}?" if near else f"the variables are {', '.join(sorted(self.values))}"
            )
            raise self.error(
                place,
                f"there is no variable {name!r}: {hint} Columns of the machines' file are variables too",
            )
        value = self.values[name]
        if not value:
            raise self.error(place, f"the variable {name!r} is empty: fill its column for this machine")
        if for_script and not _SCRIPT_SAFE.fullmatch(value):
            raise self.error(
                place,
                f"the variable {name!r} has letters that a script could execute: use letters, digits, spaces and "
                "._:/@+,=%- or write the value into a file and read it in the script",
            )
        return value
