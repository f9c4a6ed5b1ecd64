"""The decision whether a cast has machine patches, and the patches if it has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from protocol.errors import ConfigurationError, ImageError, StorageError
from protocol.image.manifest import Manifest
from protocol.trust.statement import PatchPolicy
from sender.blocking_calls import start_blocking_call
from sender.daemon.patching.room_patches import RoomPatches
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.library.library import Library
from sender.patches.patch_builder import SeedPlace
from sender.patches.template import Template, read_template
from sender.refusals import conflict
from sender.store.records.casts import CastPlan
from sender.store.store import Store

_READ_S: Final = 5.0
"""Time limit for reading an image when a cast is planned; on a slower disk the cast finds out when it starts."""

_PLAIN: Final = "or cast the image as it is (--plain)"


class PatchMaker:
    """The maker of casts' patches. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, library: Library) -> None:
        self._store = store
        self._library = library

    async def check(self, plan: CastPlan, machine_ids: Sequence[str]) -> None:
        """Refuse a plan whose machines need patches that its image doesn't allow.

        An image that isn't on this machine yet is checked when the cast starts.

        Raises:
            RequestRefusedError: the image doesn't allow patches, or a template is invalid.
        """
        path = self._library.path_of(plan.image_id)
        texts = await self._texts(plan, machine_ids)
        if not texts or path is None:
            return

        def check() -> None:
            _templates(texts)
            with ImageFile.open(path) as image:
                own = ImageSignature.of(image.header)
                _seed_place(
                    image.manifest, self._library.best_signature(plan.image_id, own), sorted(texts)[0]
                )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_S):
                try:
                    await start_blocking_call(check, "check image")
                except ConfigurationError as error:
                    raise conflict(str(error)) from error
                except (ImageError, StorageError):
                    return  # the cast reports it

    async def prepare(
        self, plan: CastPlan, machine_ids: Sequence[str], manifest: Manifest, signature: ImageSignature
    ) -> RoomPatches | None:
        """Return the patches of a cast, built for its planned machines; None if no room has a template.

        Raises:
            ConfigurationError: the image doesn't allow patches, or a template is invalid.
            DatabaseError: the templates or machines can't be read.
        """
        texts = await self._texts(plan, machine_ids)
        if not texts:
            return None
        place = _seed_place(manifest, signature, sorted(texts)[0])
        templates = await start_blocking_call(lambda: _templates(texts), "templates")
        patches = RoomPatches(self._store, place, templates, plan.room_id)
        await patches.build(machine_ids)
        return patches

    async def _texts(self, plan: CastPlan, machine_ids: Sequence[str]) -> dict[str, str]:
        """Return the text of each template of the plan's rooms."""
        if plan.plain:
            return {}
        store = self._store
        rooms = {plan.room_id}
        if plan.room_id is None:
            rooms = {
                machine.room_id for machine in await store.run(store.machines.get_many, list(machine_ids))
            }
        found = {}
        for room_id in filter(None, rooms):
            template = await store.run(store.patch_inputs.template, room_id)
            if template is not None:
                found[room_id] = template.text
        return found


def _templates(texts: dict[str, str]) -> dict[str, Template]:
    templates = {}
    for room_id, text in texts.items():
        try:
            templates[room_id] = read_template(text)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the template of room {room_id}: {error}; correct and save it again"
            ) from error
    return templates


def _seed_place(manifest: Manifest, signature: ImageSignature, room_id: str) -> SeedPlace:
    """Return the place of the seeds in an image that allows patches of the daemon.

    Raises:
        ConfigurationError: it doesn't allow them, or has no seed partition.
    """
    policy = PatchPolicy.DAEMON if signature.statement is None else signature.statement.patches
    if policy is not PatchPolicy.DAEMON:
        needed = "none" if policy is PatchPolicy.NONE else "only those of a signed set"
        raise ConfigurationError(
            f"room {room_id} has a template, but the signed statement of {manifest.name!r} allows {needed} of the "
            f"machine patches: sign the image with --patches daemon, {_PLAIN}"
        )
    try:
        return SeedPlace.of(manifest)
    except ConfigurationError as error:
        raise ConfigurationError(f"room {room_id} has a template, but {error}; {_PLAIN}") from error
