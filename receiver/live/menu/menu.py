"""The menu for one machine.

::

    choose a source ─► daemon: sign in, choose an image of the library   ─┐
                    ─► URL: https or http                                 ├─► choose a disk ─► preflight ─► confirm
                    ─► medium: image files of sticks and directories     ─┘        │
            ▲                                                                      ▼
            └──────── back, refused, wrong serial number: nothing was written ◄─ receive or restore ─► restart

The image's signature is verified by this machine's trusted keys before the disk is opened, whatever the source.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.control.boot_parameters import AfterCast
from protocol.errors import ConfigurationError, DiskcastError
from receiver.live.disk_state import DiskState, note_disk_state
from receiver.live.menu.choices import Row, disk_rows, numbered
from receiver.live.menu.console import Console, ConsoleLostError, GoBackError
from receiver.live.menu.dialog import Dialog
from receiver.live.menu.settings import MenuSettings
from receiver.service.machine_credentials import MachineCredentials
from receiver.target.eligibility import ImageNeeds

RESTART_AFTER_S: Final = 15.0
"""Time to read the result, or to stay in the menu."""


class MenuEnd(enum.Enum):
    """The reason why the menu has ended."""

    IMAGED = enum.auto()
    """An image is on a disk of this machine; the configured action follows."""
    RESTART = enum.auto()
    POWER_OFF = enum.auto()
    LEFT = enum.auto()


class Menu:
    """The menu; :meth:`run` once."""

    def __init__(self, console: Console, settings: MenuSettings) -> None:
        self._dialog = Dialog(console, self._note_confirmed)
        self._settings = settings
        self._credentials: MachineCredentials | None = None

    async def run(self) -> MenuEnd:
        """Show the menu until the technician leaves it, or an image is on a disk.

        Raises:
            ConsoleLostError: no console is left.
        """
        entries = self._entries()
        self._dialog.say()
        name = self._settings.machine_name
        self._dialog.say(f"diskcast: image this machine{f' ({name})' if name else ''}")
        while True:
            try:
                index = await self._dialog.choose(
                    "What do you want to do?", [Row(text) for text, _ in entries]
                )
                end = await self._run_entry(entries[index][1])
            except GoBackError:
                if not self._settings.live:
                    return MenuEnd.LEFT
                continue
            if end is not None:
                return end

    async def _run_entry(self, entry: Callable[[], Awaitable[MenuEnd | None]]) -> MenuEnd | None:
        """Run one entry; an error is shown, and the menu continues."""
        try:
            return await entry()
        except GoBackError:
            self._dialog.say("Nothing was written.")
        except ConsoleLostError:
            raise
        except DiskcastError as error:
            self._dialog.say()
            self._dialog.say(f"That failed: {error}")
        return None

    def _entries(self) -> list[tuple[str, Callable[[], Awaitable[MenuEnd | None]]]]:
        entries: list[tuple[str, Callable[[], Awaitable[MenuEnd | None]]]] = []
        service = self._settings.service
        if service is not None and service.servers:
            entries.append((f"Image this machine from the daemon at {service.servers[0]}", self._from_daemon))
        entries += [
            ("Image this machine from a stick or a directory", self._from_medium),
            ("Image this machine from a URL", self._from_url),
            ("List the disks", self._list_disks),
        ]
        if self._settings.live:
            return [
                *entries,
                ("Restart", self._end(MenuEnd.RESTART)),
                ("Power off", self._end(MenuEnd.POWER_OFF)),
            ]
        return [*entries, ("Leave", self._end(MenuEnd.LEFT))]

    def _note_confirmed(self) -> None:
        if self._settings.live:
            note_disk_state(DiskState.INCOMPLETE)

    @staticmethod
    def _end(end: MenuEnd) -> Callable[[], Awaitable[MenuEnd | None]]:
        async def choose() -> MenuEnd | None:
            return end

        return choose

    async def _list_disks(self) -> None:
        disks = await self._dialog.disks(ImageNeeds())
        self._dialog.say(numbered(disk_rows(disks)) if disks else "This machine has no disk.")

    # Imported when they are chosen: they need numpy, which takes a second on a slow machine.

    async def _from_daemon(self) -> MenuEnd | None:
        from receiver.live.menu.image_from_daemon import ImageFromDaemon

        service = self._settings.service
        assert service is not None
        if self._credentials is None:
            self._credentials = MachineCredentials(service.token, service.trust.state_directory)
        return await self._finish(await ImageFromDaemon(self._dialog, service, self._credentials).run())

    async def _from_url(self) -> MenuEnd | None:
        from receiver.live.menu.image_from_file import image_from_url

        return await self._finish(await image_from_url(self._dialog, self._settings))

    async def _from_medium(self) -> MenuEnd | None:
        from receiver.live.menu.image_from_file import image_from_medium

        return await self._finish(await image_from_medium(self._dialog, self._settings))

    async def _finish(self, imaged: bool) -> MenuEnd | None:
        """Return the end after a success, unless the technician wants to stay."""
        if not imaged:
            return None
        if self._settings.live:
            note_disk_state(DiskState.COMPLETE)
        action = {AfterCast.REBOOT: "restarts", AfterCast.POWEROFF: "powers off"}.get(self._settings.after)
        if action is None:
            return MenuEnd.IMAGED if not self._settings.live else None
        self._dialog.say()
        self._dialog.say(f"The machine {action} in {RESTART_AFTER_S:.0f} s. Press Enter to stay in the menu.")
        return None if await self._dialog.stopped_within(RESTART_AFTER_S) else MenuEnd.IMAGED


def run_menu(console: Console, settings: MenuSettings) -> MenuEnd:
    """Run the menu.

    Raises:
        ConfigurationError: no console is left.
    """
    try:
        with console:
            return trio.run(Menu(console, settings).run)
    except ConsoleLostError as lost:
        raise ConfigurationError(
            "the menu has lost its console: connect a screen or a serial line and start it again"
        ) from lost
