"""A measured figure of a scenario, and its bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

PASS = "PASS"
FAIL = "FAIL"


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A result of a scenario; a figure without a bound is only informative.

    Attributes:
        scenario: name of the scenario, as on the command line.
        quantity: the measured quantity.
        value: nan when nothing could be measured, which fails a bound.
        unit: follows the value: ``%``, ``s``, ``Mbit/s``, or empty for a ratio or a count.
        at_least: lower bound, in the same unit.
        at_most: upper bound, in the same unit.
        note: further facts.
    """

    scenario: str
    quantity: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return ``PASS`` or ``FAIL``; empty without a bound."""
        if self.at_least is None and self.at_most is None:
            return ""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return PASS if low <= self.value <= high else FAIL

    @property
    def value_text(self) -> str:
        """Return the value with its unit."""
        return self._text(self.value)

    @property
    def bound_text(self) -> str:
        """Return the bound as ``≥ 93 %`` or ``≤ 3 s``; empty without a bound."""
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return ", ".join(f"{sign} {self._text(bound)}" for sign, bound in bounds if bound is not None)

    def _text(self, number: float) -> str:
        if math.isnan(number):
            return "none"
        digits = f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
        return f"{digits} {self.unit}" if self.unit else digits


def failure(scenario: str, reason: str) -> Figure:
    """Return the figure of a scenario that couldn't be measured."""
    return Figure(scenario, "ran to its end", 0.0, at_least=1.0, note=reason)


HEADINGS = ("scenario", "figure", "measured", "bound", "verdict", "notes")


def rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Return the rows of a table with :data:`HEADINGS`."""
    return [
        [one.scenario, one.quantity, one.value_text, one.bound_text, one.verdict, one.note] for one in figures
    ]
