"""Machine patches: templates of rooms, variables of machines, and a preview of both."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from protocol.errors import ConfigurationError, PatchRefusedError
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.patches import PreviewInput, TemplateInput, VariablesInput
from sender.api.routes.machines import get_machine
from sender.api.routes.parameters import ImageIdPath, MachineIdPath, RoomIdPath
from sender.api.routes.rooms import csv_text, get_room
from sender.blocking_calls import start_blocking_call
from sender.daemon.context import Services
from sender.daemon.patching.patch_machines import read_seed_template
from sender.daemon.patching.seed_preview import preview_seed
from sender.daemon.patching.variables_csv import read_variables
from sender.http.body import read_body_untrusted
from sender.patches.patch_bundle import BUNDLE_BYTES_MAX, PatchBundle
from sender.refusals import invalid, not_found
from sender.store.records.patch_inputs import (
    MachineVariables,
    RoomPatchSet,
    RoomTemplate,
    SeedPreview,
    VariablesImport,
)


async def get_room_template(services: ServicesOf, room_id: RoomIdPath) -> RoomTemplate:
    """Show a room's template of machine patches, with its secrets."""
    await get_room(services, room_id)
    return await _template(services, room_id)


async def put_room_template(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, body: TemplateInput
) -> RoomTemplate:
    """Replace a room's template.

    Casts that start from now on give its machines the settings that it declares.
    """
    await get_room(services, room_id)
    try:
        await start_blocking_call(lambda: read_seed_template(body.text), "template")
    except ConfigurationError as error:
        raise invalid(f"text: {error}") from error
    store = services.store
    return await store.run(store.patch_inputs.put_template, room_id, body.text, audit=actor.note())


async def remove_room_template(services: ServicesOf, actor: ActorOf, room_id: RoomIdPath) -> Response:
    """Remove a room's template: its machines get images as they are."""
    await get_room(services, room_id)
    store = services.store
    if not await store.run(store.patch_inputs.remove_template, room_id, audit=actor.note()):
        raise not_found("template of room", room_id)
    return Response(status_code=204)


async def preview_room_template(services: ServicesOf, room_id: RoomIdPath, body: PreviewInput) -> SeedPreview:
    """Preview what a room's template, saved or not, gives one of its machines.

    Secrets are hidden: password hashes, secret files, values of secret variables.
    """
    await get_room(services, room_id)
    store = services.store
    machine = await store.run(store.machines.get, body.machine_id)
    if machine is None or machine.room_id != room_id:
        raise invalid(f"machine_id: there is no machine {body.machine_id!r} in room {room_id!r}")
    text = body.text if body.text is not None else (await _template(services, room_id)).text
    variables = (await store.run(store.patch_inputs.variables, [machine.machine_id])).get(machine.machine_id)
    own = {} if variables is None else variables.variables
    try:
        return await start_blocking_call(lambda: preview_seed(text, machine, own), "preview")
    except ConfigurationError as error:
        raise invalid(f"text: {error}") from error


async def import_variables(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, request: Request
) -> VariablesImport:
    """Import the variables of a room's machines from CSV, with the columns of `diskcast patches build`.

    The columns `name`, `mac`, `serial` and `asset_tag` find a machine of the room. Each other column is a variable: an
    empty cell removes it, and variables without a column stay. After an error in any line nothing is changed.
    """
    await get_room(services, room_id)
    text = await csv_text(request)
    store = services.store
    machines = await store.run(store.machines.of_room, room_id)
    known = await store.run(store.patch_inputs.variables, [machine.machine_id for machine in machines])
    present = {machine_id: one.variables for machine_id, one in known.items()}
    found, problems = await start_blocking_call(lambda: read_variables(text, machines, present), "variables")
    if problems:
        return VariablesImport(0, 0, tuple(problems))
    changed = await store.run(store.patch_inputs.put_variables, found, audit=actor.note())
    return VariablesImport(changed, len(found) - changed, ())


async def list_patch_sets(services: ServicesOf, room_id: RoomIdPath) -> list[RoomPatchSet]:
    """List the signed sets of a room's machine patches."""
    await get_room(services, room_id)
    return await services.store.run(services.store.patch_inputs.sets, room_id)


async def upload_patch_set(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, request: Request
) -> RoomPatchSet:
    """Upload a signed set of machine patches with the patches, for images that are signed with `patches: signed`.

    The body has the set's file and each patch, each behind its length as a little-endian u32. It replaces the room's
    set for the same image. Agents check the signature; the daemon checks that the patches are those of the set.
    """
    await get_room(services, room_id)
    data = await read_body_untrusted(request, BUNDLE_BYTES_MAX)
    try:
        bundle = await start_blocking_call(lambda: PatchBundle.from_bytes_untrusted(data), "patch set")
    except PatchRefusedError as error:
        raise invalid(str(error)) from error
    found, store = bundle.patch_set, services.store
    return await store.run(
        store.patch_inputs.put_set,
        room_id,
        found.image_id.hex(),
        found.name,
        len(bundle.patches),
        data,
        audit=actor.note(),
    )


async def remove_patch_set(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, image_id: ImageIdPath
) -> Response:
    """Remove a signed set of machine patches."""
    await get_room(services, room_id)
    store = services.store
    if not await store.run(store.patch_inputs.remove_set, room_id, image_id, audit=actor.note()):
        raise not_found("set of patches for image", image_id)
    return Response(status_code=204)


async def get_machine_variables(services: ServicesOf, machine_id: MachineIdPath) -> MachineVariables:
    """Show the variables of a machine, with its secrets."""
    await get_machine(services, machine_id)
    return await _variables(services, machine_id)


async def put_machine_variables(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: VariablesInput
) -> MachineVariables:
    """Replace the variables of a machine."""
    await get_machine(services, machine_id)
    store = services.store
    await store.run(store.patch_inputs.put_variables, {machine_id: body.variables}, audit=actor.note())
    return await _variables(services, machine_id)


async def _template(services: Services, room_id: str) -> RoomTemplate:
    template = await services.store.run(services.store.patch_inputs.template, room_id)
    if template is None:
        raise not_found("template of room", room_id)
    return template


async def _variables(services: Services, machine_id: str) -> MachineVariables:
    found = await services.store.run(services.store.patch_inputs.variables, [machine_id])
    return found.get(machine_id) or MachineVariables(machine_id, {}, None, "")
