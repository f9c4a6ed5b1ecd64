"""An image's file without a daemon: on a stick, in a directory, or behind a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from protocol.disk.disk_layout import layout_of
from protocol.program.peer_trust import PeerTrust
from protocol.shared.units import format_bytes
from protocol.trust.pin import parse_pin
from receiver.disk.inventory.read_devices import read_inventory
from receiver.live.menu.choices import Row, selector_of
from receiver.live.menu.dialog import Dialog, accept
from receiver.live.menu.media import image_files, mounted_media
from receiver.live.menu.preflight import ImageFacts
from receiver.live.menu.settings import MenuSettings
from receiver.restore.disk_progress import Difference, LineProgress
from receiver.restore.http_image import open_image_url
from receiver.restore.image_source import ImageSource, open_image
from receiver.restore.restore_image import restore_opened
from receiver.target.eligibility import image_needs
from receiver.trust.image_gate import ImageGate


class ConsoleProgress(LineProgress):
    """Progress and result of a restore as lines on the consoles."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._say = say

    def differences(self, count: int, first: Sequence[Difference]) -> None:
        """Show the number of differing blocks."""
        self._say(f"{count} blocks read back wrong, first at byte {first[0].offset_bytes}")

    def result(self, fields: dict[str, object], text: str) -> None:
        """Show the result."""
        self._say(text)


async def image_from_url(dialog: Dialog, settings: MenuSettings) -> bool:
    """Image this machine from a web server; return whether an image is on a disk.

    Raises:
        GoBackError: the technician goes back; nothing was written.
        DiskcastError: the image can't be read or restored.
    """
    suggested = settings.image_url
    hint = f" (Enter: {suggested})" if suggested else ", such as https://192.0.2.1/images/lab.dci"
    url = await dialog.ask(f"URL of the image{hint}:") or suggested
    if url.startswith("file://"):
        path = Path(url.removeprefix("file://"))
        return await _restore(dialog, settings, await trio.to_thread.run_sync(open_image, path), path)
    trust = PeerTrust()
    if url.startswith("https://"):
        text = (
            "Pin of the server's certificate (Enter: accept any; the image's signature is verified anyway):"
        )
        pin = await dialog.ask(text)
        trust = PeerTrust((parse_pin(pin),)) if pin else trust
    return await _restore(dialog, settings, await trio.to_thread.run_sync(open_image_url, url, trust), None)


async def image_from_medium(dialog: Dialog, settings: MenuSettings) -> bool:
    """Image this machine from an image file on a medium; return and raise as :func:`image_from_url` does."""
    inventory = await trio.to_thread.run_sync(read_inventory)
    with contextlib.ExitStack() as stack:
        places, problems = await trio.to_thread.run_sync(stack.enter_context, mounted_media(inventory))
        for problem in problems:
            dialog.say(problem)
        directories = [(directory, str(directory)) for directory in settings.directories]
        files = await trio.to_thread.run_sync(image_files, [*directories, *places])
        if not files:
            dialog.say(
                "No image was found: put a .dci file, or a folder diskcast/ with such files, on a removable medium."
            )
            return False
        rows = [Row(f"{one.path.name}, {format_bytes(one.size_bytes)}", (one.place,)) for one in files]
        path = files[await dialog.choose("Which image?", rows)].path
        return await _restore(dialog, settings, await trio.to_thread.run_sync(open_image, path), path)


async def _restore(
    dialog: Dialog, settings: MenuSettings, source: ImageSource, image_path: Path | None
) -> bool:
    with source:
        gate = ImageGate(settings.trust)
        manifest = source.manifest
        accepted = accept(gate, source.offered)
        facts = ImageFacts(manifest.name, manifest.raw_bytes, layout_of(manifest.metadata))
        confirmed = await dialog.confirm_disk(image_needs(manifest, image_path), facts, accepted)
        if confirmed is None or isinstance(accepted, str):
            return False
        chosen, others = confirmed
        target = selector_of(chosen.disk, others)
        progress = ConsoleProgress(dialog.say)

        def restore() -> None:
            restore_opened(source, target, progress, settings.target_options, image_path=image_path)

        # Not abandoned when the menu is cancelled: a half-written block would be left.
        await trio.to_thread.run_sync(restore)
        gate.completed(accepted)
        return True
