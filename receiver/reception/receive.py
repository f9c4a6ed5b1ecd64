"""One reception from start to end: find the cast, open the target, run a cast receiver."""

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
from protocol.model.session_records import MachineIdentity
from receiver.disk.queue_settings import tuned_queue
from receiver.disk.target import Target
from receiver.hardware.read_hardware import read_hardware
from receiver.reception.cast_link import CastLink
from receiver.reception.cast_receiver import CastReceiver
from receiver.reception.machine_identity import describe_machine, read_identity
from receiver.reception.manifest_store import manifest_store
from receiver.reception.network.cast_endpoint import CastEndpoint, EndpointTracker
from receiver.reception.network.cast_finder import find_cast
from receiver.reception.network.control_client import (
    ControlClient,
    require_plausible_manifest,
    retry_until,
)
from receiver.reception.network.data_socket import DataSocket
from receiver.reception.network.discovery import CastOffer, request_cast
from receiver.reception.network.feedback_socket import FeedbackSocket
from receiver.reception.network.interface import ReceiveInterface, find_interface
from receiver.reception.options import CastReceiverOptions, ReceiveOptions, ReceiveRequest
from receiver.reception.patch_gate import PatchGate
from receiver.reception.reporting.observer import Observer
from receiver.reception.reporting.status import Reception
from receiver.shared.nursery_errors import run_until
from receiver.target.dry_run import DryRun, dry_run
from receiver.target.image import TargetImage
from receiver.target.options import open_chosen, refuse_chosen

Monitor = Callable[[CastReceiver], contextlib.AbstractContextManager[None]]
"""A context around a receiver's run, which reads the receiver's status."""


async def receive_image(request: ReceiveRequest, observer: Observer, monitor: Monitor) -> Reception:
    """Find the requested cast and receive its image.

    Args:
        request: the operator's request.
        observer: notified of progress.
        monitor: entered while the receiver runs.

    Raises:
        DiskcastError: as :func:`receive_cast` raises, or no cast was found.
    """
    interface = find_interface(request.options.interface, request.group)
    await _refuse_target(request.options)
    client, offer = await _find_cast(request, interface)
    endpoint = CastEndpoint(offer.cast_id, client.url, request.access, source=offer.source or "")
    return await receive_cast(request.options, endpoint, observer, monitor)


async def receive_cast(
    options: ReceiveOptions,
    endpoint: CastEndpoint,
    observer: Observer,
    monitor: Monitor,
    tracker: EndpointTracker | None = None,
) -> Reception:
    """Receive the image of a known cast.

    The image is accepted before the target is opened, and the target is opened and checked before the receiver joins,
    so that a refusal costs neither the disk nor the other receivers anything.

    Args:
        options: how to receive.
        endpoint: the cast's endpoint.
        observer: notified of progress.
        monitor: entered while the receiver runs.
        tracker: the cast's current endpoint, if another daemon may take it over.

    Raises:
        TrustError: this machine doesn't accept the image; the target wasn't opened.
        DiskcastError: as :meth:`receiver.reception.cast_receiver.CastReceiver.run` raises, or the target can't be
            opened.
    """
    endpoint, cast = await _describe_cast(endpoint, options.receiver.join_timeout_s, tracker)
    accepted = options.gate.accept(cast, assigned_id=endpoint.image_id, version_min=endpoint.version_min)
    observer.accepted(accepted)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(await _open_target(options, cast))
        stack.enter_context(tuned_queue(target))
        image = stack.enter_context(contextlib.closing(TargetImage(target, options.target_options)))

        def current_bearer() -> str:
            return (endpoint if tracker is None else tracker.endpoint).access.bearer

        def connect(endpoint: CastEndpoint, sender_address: str) -> CastLink:
            interface = find_interface(options.interface, endpoint.group)
            feedback = stack.enter_context(FeedbackSocket(interface, sender_address))
            source = endpoint.source or sender_address
            return CastLink(
                ControlClient(endpoint.control_url, endpoint.access, current_bearer),
                functools.partial(_open_data, interface, endpoint.group, endpoint.port, source),
                feedback.send,
            )

        known = endpoint

        async def wait_for_takeover() -> CastLink:
            nonlocal known
            assert tracker is not None
            known = await tracker.wait_for_change(known)
            return connect(known, known.source)

        inventory = {
            **describe_machine(options.interface, read_hardware()),
            "target": str(target.path),
            "target_bytes": str(target.size_bytes),
            **options.receiver.inventory,
        }
        receiver = CastReceiver(
            cast.cast_id,
            image,
            patch_gate=PatchGate(
                accepted,
                own_machine_ids(options.receiver, read_identity(options.interface)),
                functools.partial(options.gate.verified_patch_set, signer=cast.signer),
                endpoint.patch_id,
            ),
            link=connect(endpoint, cast.sender_address),
            options=dataclasses.replace(options.receiver, inventory=inventory),
            observer=observer,
            rng=random.Random(),
            wait_for_takeover=None if tracker is None else wait_for_takeover,
        )
        with monitor(receiver):
            reception = await receiver.run(cast.symbol_bytes)
    options.gate.completed(accepted)
    return reception


async def try_receive(request: ReceiveRequest) -> DryRun:
    """Return the effect that receiving the requested cast would have on the target; change nothing and don't join.

    Raises:
        DiskcastError: the cast or the target would be refused, or the sender can't be reached.
    """
    options = request.options
    interface = find_interface(options.interface, request.group)
    await _refuse_target(options)
    client, offer = await _find_cast(request, interface)
    deadline = trio.current_time() + request.wait_s
    cast = await retry_until(deadline, functools.partial(client.cast, offer.cast_id))
    accepted = options.gate.accept(cast)
    with await _open_target(options, cast) as target:
        require_plausible_manifest(cast.raw_bytes, cast.block_bytes, cast.manifest_bytes)
        store = manifest_store(cast.manifest_bytes)
        await retry_until(deadline, functools.partial(client.manifest, offer.cast_id, store))
        manifest = Manifest.parse_untrusted(store.collected())
        if manifest.image_id != accepted.image_id or manifest.raw_bytes != cast.raw_bytes:
            raise CastFailedError(
                "the sender's manifest doesn't match the image that it announces: start the cast again"
            )
        return await trio.to_thread.run_sync(dry_run, target, manifest, options.target_options)


async def _describe_cast(
    endpoint: CastEndpoint, timeout_s: float, tracker: EndpointTracker | None
) -> tuple[CastEndpoint, CastDescription]:
    """Request the cast's description, following takeovers; the endpoint returned has no empty field."""
    while True:
        known = endpoint if tracker is None else tracker.endpoint
        deadline = trio.current_time() + timeout_s
        request = functools.partial(ControlClient(known.control_url, known.access).cast, known.cast_id)
        describe = functools.partial(retry_until, deadline, request)
        cast = await (
            describe()
            if tracker is None
            else run_until(functools.partial(tracker.wait_for_change, known), describe)
        )
        if cast is not None:
            group, port = known.group or cast.group, known.port or cast.port
            return dataclasses.replace(known, group=group, port=port), cast


async def _find_cast(request: ReceiveRequest, interface: ReceiveInterface) -> tuple[ControlClient, CastOffer]:
    if request.sender_url is not None:
        client = ControlClient(request.sender_url, request.access)
        return client, await request_cast(client, request.choice, wait_s=request.wait_s)
    offer = await find_cast(
        interface,
        request.group,
        request.port,
        request.choice,
        request.access,
        wait_s=request.wait_s,
        rng=random.Random(),
    )
    return ControlClient(offer.control_url, request.access), offer


def _open_data(
    interface: ReceiveInterface, group: str, port: int, source: str, frame_bytes: int
) -> DataSocket:
    return DataSocket(interface, group, port, source=source, frame_bytes=frame_bytes)


async def _refuse_target(options: ReceiveOptions) -> None:
    """Refuse a hopeless target at once: a person who waits for a sender would hear of it minutes later."""
    await trio.to_thread.run_sync(refuse_chosen, options.target, options.target_options)


async def _open_target(options: ReceiveOptions, cast: CastDescription) -> Target:
    open_target = functools.partial(
        open_chosen, options.target, options.target_options, raw_bytes=cast.raw_bytes
    )
    return await trio.to_thread.run_sync(open_target)


def own_machine_ids(options: CastReceiverOptions, read: MachineIdentity) -> frozenset[str]:
    """Return the ids under which a patch may be for this machine; a daemon can set only its name.

    Args:
        options: name of this machine, the daemon's in service mode; and the identity that the operator stated.
        read: identity as read from this machine.
    """
    ids = {options.name}
    for identity in filter(None, (read, options.identity)):
        ids.update((identity.serial, identity.asset_tag, *identity.macs))
    return frozenset(filter(None, ids))
