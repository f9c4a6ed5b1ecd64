"""The questions that every way to an image shares: a number from a list, the disk, the preflight, the confirmation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.errors import DiskcastError, TrustError
from protocol.trust.image_policy import AcceptedImage, OfferedImage
from receiver.disk.inventory.read_devices import read_inventory
from receiver.hardware.read_hardware import read_hardware
from receiver.live.menu.choices import (
    Row,
    confirmation_prompt,
    confirms,
    disk_rows,
    numbered,
    parse_choice,
)
from receiver.live.menu.console import Console, GoBackError
from receiver.live.menu.preflight import ImageFacts, check_all, refused, report
from receiver.restore.listed_disks import ListedDisk, list_disks
from receiver.target.eligibility import ImageNeeds, is_shown
from receiver.trust.image_gate import ImageGate

_SLICE_S: Final = 0.5
"""Time after which a question looks whether the session behind it has ended."""


class Dialog:
    """Questions on the consoles; the event loop runs on meanwhile."""

    def __init__(self, console: Console, on_confirmed: Callable[[], None]) -> None:
        """Args:
        console: shows the questions.
        on_confirmed: called when a disk is confirmed, before it is written.
        """
        self._console = console
        self._on_confirmed = on_confirmed

    def say(self, text: str = "") -> None:
        """Show lines."""
        self._console.say(text)

    async def ask(self, prompt: str) -> str:
        """Return an answer.

        Raises:
            GoBackError: the technician goes back.
            ConsoleLostError: no console is left.
        """
        self._console.prompt(prompt)
        while True:
            line = await trio.to_thread.run_sync(self._console.line_within, _SLICE_S)
            if line is not None:
                return line

    async def ask_secret(self, prompt: str) -> str:
        """Return an answer that isn't shown; raises as :meth:`ask` does."""
        with self._console.hidden():
            return await self.ask(prompt)

    async def stopped_within(self, timeout_s: float) -> bool:
        """Wait; return True as soon as the technician presses Enter or goes back."""
        try:
            wait = functools.partial(self._console.line_within, timeout_s)
            return await trio.to_thread.run_sync(wait) is not None
        except GoBackError:
            return True

    async def choose(self, title: str, rows: Sequence[Row]) -> int:
        """Return the index of the chosen row; raises as :meth:`ask` does."""
        while True:
            self.say()
            self.say(title)
            self.say(numbered(rows))
            index = parse_choice(await self.ask(f"Number (1-{len(rows)}, Ctrl-C: back):"), len(rows))
            if index is not None:
                return index
            self.say(f"Type a number from 1 to {len(rows)}.")

    async def disks(self, needs: ImageNeeds) -> list[ListedDisk]:
        """Return the disks of this machine, judged as targets; reads them, and opens none for writing."""
        listed = await trio.to_thread.run_sync(lambda: list_disks(read_inventory(), needs))
        return [one for one in listed if is_shown(one.disk, one.refusal)]

    async def confirm_disk(
        self, needs: ImageNeeds, image: ImageFacts, accepted: AcceptedImage | str
    ) -> tuple[ListedDisk, list[ListedDisk]] | None:
        """Let the technician choose a disk, see the preflight and confirm; nothing is opened for writing.

        Returns:
            The confirmed disk, and all disks; None if a check refuses or the confirmation is wrong.

        Raises:
            GoBackError: the technician goes back.
        """
        disks = await self.disks(needs)
        if not disks:
            self.say("This machine has no disk. Check its cables and the firmware's storage settings.")
            return None
        chosen = disks[0]
        if len(disks) > 1:
            chosen = disks[await self.choose("Which disk shall be overwritten?", disk_rows(disks))]
        checks = check_all(image, accepted, chosen, read_hardware())
        self.say()
        self.say(f"Image {image.name} onto {chosen.disk.path}:")
        self.say(report(checks))
        if refused(checks):
            self.say("This image can't be written to this disk. Nothing was written.")
            return None
        self.say()
        self.say(f"EVERYTHING ON {chosen.disk.path} WILL BE OVERWRITTEN.")
        typed = await self.ask(confirmation_prompt(chosen.disk))
        if not confirms(chosen.disk, typed):
            wanted = "serial number" if chosen.disk.serial else "name"
            self.say(f"That isn't the {wanted} of {chosen.disk.path}. Nothing was written.")
            return None
        self._on_confirmed()
        return chosen, disks


def accept(gate: ImageGate, offered: OfferedImage) -> AcceptedImage | str:
    """Return the image as this machine accepts it, or the reason why it doesn't."""
    try:
        return gate.accept_offered(offered)
    except TrustError as error:
        return str(error)
    except DiskcastError as error:
        return f"it can't be checked: {error}"
