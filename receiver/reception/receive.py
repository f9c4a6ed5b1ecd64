"""One ``diskcast-agent receive`` from beginning to end: find the cast, open the target, hand both to the agent."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable

import trio

from protocol.control.control_messages import CastDescription
from protocol.errors import CastFailedError
from protocol.image.manifest import Manifest
from receiver.disk.queue_settings import tuned_queue
from receiver.disk.target import Target
from receiver.reception.cast_receiver import CastLink, CastReceiver, CastReceiverOptions, Observer, Reception
from receiver.reception.machine_identity import describe_machine
from receiver.reception.manifest_store import manifest_store
from receiver.reception.network.cast_endpoint import CastPlace, Whereabouts
from receiver.reception.network.control_client import (
    ControlClient,
    require_plausible_manifest,
    retry_until,
)
from receiver.reception.network.data_socket import DataSocket
from receiver.reception.network.discovery import CastChoice, CastOffer, ask_for_cast, listen_for_cast
from receiver.reception.network.feedback_socket import FeedbackSocket
from receiver.reception.network.interface import ReceiveInterface, find_interface
from receiver.shared.nursery_errors import unless
from receiver.target.dry_run import DryRun, dry_run
from receiver.target.image import TargetImage
from receiver.target.options import TargetOptions, open_chosen


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """How to receive, whichever cast it is."""

    target: str
    target_options: TargetOptions
    interface: str
    receiver: CastReceiverOptions


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """What the operator asked for: how to receive, and which cast."""

    options: ReceiveOptions
    sender_url: str | None
    group: str
    port: int
    choice: CastChoice
    wait_s: float


async def receive_image(
    options: ReceiveRequest,
    observer: Observer,
    watch: Callable[[CastReceiver], contextlib.AbstractContextManager[None]],
) -> Reception:
    """Receive one image.

    The target is opened and checked before the agent joins, so that a refusal costs the room nothing.

    Args:
        options: what the operator asked for.
        observer: is told how it goes.
        watch: entered while the agent runs: who reads its status, for metrics.

    Raises:
        DiskcastError: as :meth:`receiver.reception.cast_receiver.Agent.run`, and all that finding the cast and opening
            the target raise.
    """
    interface = find_interface(options.options.interface, options.group)
    client, offer = await _find_cast(options, interface)
    place = CastPlace(offer.cast_id, client.url, source=offer.source or "")
    return await receive_cast(options.options, place, observer, watch)


async def receive_cast(
    options: ReceiveOptions,
    place: CastPlace,
    observer: Observer,
    watch: Callable[[CastReceiver], contextlib.AbstractContextManager[None]],
    whereabouts: Whereabouts | None = None,
) -> Reception:
    """Receive the image of a cast that is known.

    The target is opened and checked before the agent joins, so that a refusal costs the room nothing.

    Args:
        options: what the operator asked for.
        place: where the cast is.
        observer: is told how it goes.
        watch: entered while the agent runs: who reads its status.
        whereabouts: where the cast is by then, if another daemon may take it over.

    Raises:
        DiskcastError: as :meth:`receiver.reception.cast_receiver.Agent.run`, and all that opening the target raises.
    """
    place, cast = await _describe(place, options.receiver.join_timeout_s, whereabouts)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(await _open_target(options, cast))
        stack.enter_context(tuned_queue(target))
        image = stack.enter_context(contextlib.closing(TargetImage(target, options.target_options)))

        def connect(place: CastPlace, sender_address: str) -> CastLink:
            interface = find_interface(options.interface, place.group)
            feedback = stack.enter_context(FeedbackSocket(interface, sender_address))
            source = place.source or sender_address
            return CastLink(
                ControlClient(place.control_url),
                functools.partial(_open_data, interface, place.group, place.port, source),
                feedback.send,
            )

        known = place

        async def relocate() -> CastLink:
            nonlocal known
            assert whereabouts is not None
            known = await whereabouts.elsewhere(known)
            return connect(known, known.source)

        inventory = {
            **describe_machine(options.interface),
            "target": str(target.path),
            "target_bytes": str(target.size_bytes),
            **options.receiver.inventory,
        }
        agent = CastReceiver(
            cast.cast_id,
            image,
            link=connect(place, cast.sender_address),
            options=dataclasses.replace(options.receiver, inventory=inventory),
            observer=observer,
            rng=random.Random(),
            relocate=None if whereabouts is None else relocate,
        )
        with watch(agent):
            return await agent.run(cast.symbol_bytes)


async def _describe(
    place: CastPlace, wait_s: float, whereabouts: Whereabouts | None
) -> tuple[CastPlace, CastDescription]:
    """The cast, described by its sender, wherever that is by then; the place is known wholly afterwards."""
    while True:
        known = place if whereabouts is None else whereabouts.place
        deadline = trio.current_time() + wait_s
        ask = functools.partial(ControlClient(known.control_url).cast, known.cast_id)
        tell = functools.partial(retry_until, deadline, ask)
        cast = await (
            tell() if whereabouts is None else unless(functools.partial(whereabouts.elsewhere, known), tell)
        )
        if cast is not None:
            group, port = known.group or cast.group, known.port or cast.port
            return dataclasses.replace(known, group=group, port=port), cast


async def _find_cast(options: ReceiveRequest, interface: ReceiveInterface) -> tuple[ControlClient, CastOffer]:
    if options.sender_url is not None:
        client = ControlClient(options.sender_url)
        return client, await ask_for_cast(client, options.choice, wait_s=options.wait_s)
    offer = await listen_for_cast(
        interface, options.group, options.port, options.choice, wait_s=options.wait_s
    )
    return ControlClient(offer.control_url), offer


def _open_data(
    interface: ReceiveInterface, group: str, port: int, source: str, frame_bytes: int
) -> DataSocket:
    return DataSocket(interface, group, port, source=source, frame_bytes=frame_bytes)


async def _open_target(options: ReceiveOptions, cast: CastDescription) -> Target:
    open_it = functools.partial(open_chosen, options.target, options.target_options, raw_bytes=cast.raw_bytes)
    return await trio.to_thread.run_sync(open_it)


async def try_receive(options: ReceiveRequest) -> DryRun:
    """Find the cast and say what receiving it would do to the target; nothing is changed, nobody joins.

    Raises:
        DiskcastError: what would be refused, or the sender can't be reached.
    """
    interface = find_interface(options.options.interface, options.group)
    client, offer = await _find_cast(options, interface)
    deadline = trio.current_time() + options.wait_s
    cast = await retry_until(deadline, functools.partial(client.cast, offer.cast_id))
    with await _open_target(options.options, cast) as target:
        require_plausible_manifest(cast.raw_bytes, cast.block_bytes, cast.manifest_bytes)
        store = manifest_store(cast.manifest_bytes)
        await retry_until(deadline, functools.partial(client.manifest, offer.cast_id, store))
        manifest = Manifest.parse_untrusted(store.collected())
        if manifest.image_id != cast.image_id or manifest.raw_bytes != cast.raw_bytes:
            raise CastFailedError(
                "the sender's manifest isn't that of the image it announces: start the cast again"
            )
        return await trio.to_thread.run_sync(dry_run, target, manifest, options.options.target_options)
