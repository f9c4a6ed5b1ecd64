"""The interface of the live system's reporter, which shows steps, errors and the agent's events."""

from __future__ import annotations

from typing import Protocol

from protocol.control.boot_parameters import AfterCast
from receiver.service.log import ServiceLog


class BootReporter(ServiceLog, Protocol):
    """A subscriber to the steps of the start, and to the events of the agent after it."""

    def step(self, text: str) -> None:
        """Show a step or a finding."""

    def stopped_by(self, message: str, following: str) -> None:
        """Show the reason for which this machine can't be imaged, and the action that follows."""

    def prepare(self, target: str, after: AfterCast) -> None:
        """Note the target and the action after a cast, as the settings of this boot have them."""

    def identify(self, name: str, address: str) -> None:
        """Note name and address of this machine."""

    def close(self) -> None:
        """Leave the consoles to another program."""

    def reopen(self) -> None:
        """Take the consoles back, if they were left to another program."""
