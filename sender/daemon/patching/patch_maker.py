"""The decision whether a cast has machine patches, and the patches if it has."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Final

from protocol.errors import ConfigurationError, ImageError, PatchRefusedError, StorageError
from protocol.image.manifest import Manifest
from protocol.trust.statement import PatchPolicy
from sender.blocking_calls import start_blocking_call
from sender.daemon.patching.patch_machines import read_seed_template
from sender.daemon.patching.patch_sources import PatchSource, SetSource, TemplateSource
from sender.daemon.patching.room_patches import RoomPatches
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.library.library import Library
from sender.patches.patch_builder import SeedPlace
from sender.patches.patch_bundle import PatchBundle
from sender.patches.template import Template
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
        inputs = await self._inputs(plan, machine_ids)
        if not inputs.any or path is None:
            return

        def check() -> None:
            with ImageFile.open(path) as image:
                own = ImageSignature.of(image.header)
                _source(image.manifest, self._library.best_signature(plan.image_id, own), inputs)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_S):
                try:
                    await start_blocking_call(check, "check image")
                except (ConfigurationError, PatchRefusedError) as error:
                    raise conflict(str(error)) from error
                except (ImageError, StorageError):
                    return  # the cast reports it

    async def prepare(
        self, plan: CastPlan, machine_ids: Sequence[str], manifest: Manifest, signature: ImageSignature
    ) -> RoomPatches | None:
        """Return the patches of a cast, built for its planned machines; None if its rooms declare none.

        Raises:
            ConfigurationError: the image doesn't allow patches, or a template is invalid.
            PatchRefusedError: the signed set is damaged.
            DatabaseError: the templates or machines can't be read.
        """
        inputs = await self._inputs(plan, machine_ids)
        if not inputs.any:
            return None
        source = await start_blocking_call(lambda: _source(manifest, signature, inputs), "patch source")
        if source is None:
            return None
        patches = RoomPatches(self._store, source)
        await patches.build(machine_ids)
        return patches

    async def _inputs(self, plan: CastPlan, machine_ids: Sequence[str]) -> _Inputs:
        """Return the templates and signed sets of the plan's rooms."""
        inputs = _Inputs(plan.room_id, {}, {})
        if plan.plain:
            return inputs
        store = self._store
        rooms = {plan.room_id}
        if plan.room_id is None:
            rooms = {
                machine.room_id for machine in await store.run(store.machines.get_many, list(machine_ids))
            }
        for room_id in sorted(filter(None, rooms)):
            template = await store.run(store.patch_inputs.template, room_id)
            if template is not None:
                inputs.templates[room_id] = template.text
            bundle = await store.run(store.patch_inputs.bundle, room_id, plan.image_id)
            if bundle is not None:
                inputs.bundles[room_id] = bundle
        return inputs


@dataclasses.dataclass(frozen=True, slots=True)
class _Inputs:
    """Declared settings of a plan's rooms.

    Attributes:
        room_id: the plan's room.
        templates: text of each room's template.
        bundles: each room's signed set for the image, with its patches.
    """

    room_id: str | None
    templates: dict[str, str]
    bundles: dict[str, bytes]

    @property
    def any(self) -> bool:
        """Return whether a room declares something."""
        return bool(self.templates or self.bundles)


def _source(manifest: Manifest, signature: ImageSignature, inputs: _Inputs) -> PatchSource | None:
    """Return the source that the image's statement allows; None if a room's set is for images of another kind.

    Raises:
        ConfigurationError: the image doesn't allow patches, or has no place for them.
        PatchRefusedError: the signed set is damaged.
    """
    policy = PatchPolicy.DAEMON if signature.statement is None else signature.statement.patches
    if policy is PatchPolicy.SIGNED:
        return _set_source(manifest, inputs)
    if not inputs.templates:
        return None
    room_id = min(inputs.templates)
    if policy is PatchPolicy.NONE:
        raise ConfigurationError(
            f"room {room_id} has a template, but the signed statement of {manifest.name!r} allows none of the machine "
            f"patches: sign the image with --patches daemon, {_PLAIN}"
        )
    templates = _templates(inputs.templates)
    try:
        return TemplateSource(SeedPlace.of(manifest), templates, inputs.room_id)
    except ConfigurationError as error:
        raise ConfigurationError(f"room {room_id} has a template, but {error}; {_PLAIN}") from error


def _set_source(manifest: Manifest, inputs: _Inputs) -> PatchSource:
    rooms = sorted({*inputs.templates, *inputs.bundles})
    if len(rooms) > 1:
        raise ConfigurationError(
            f"the image {manifest.name!r} needs a signed set of patches, and the machines are in several rooms "
            f"({', '.join(rooms[:3])}): cast to one room at a time"
        )
    [room_id] = rooms
    if room_id not in inputs.bundles:
        raise ConfigurationError(
            f"room {room_id} has a template, but the signed statement of {manifest.name!r} allows only patches of a "
            f"signed set: build and sign one, and upload it with `diskcast rooms patch-set upload {room_id} FOLDER`, "
            f"{_PLAIN}"
        )
    return SetSource(PatchBundle.from_bytes_untrusted(inputs.bundles[room_id]))


def _templates(texts: dict[str, str]) -> dict[str, Template]:
    templates = {}
    for room_id, text in texts.items():
        try:
            templates[room_id] = read_seed_template(text)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the template of room {room_id}: {error}; correct and save it again"
            ) from error
    return templates
