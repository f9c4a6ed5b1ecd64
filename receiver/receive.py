"""One ``diskcast-agent receive`` from beginning to end: find the cast, open the target, hand both to the agent."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]
import trio

from protocol.control_messages import CastDescription
from protocol.errors import CastFailedError
from protocol.manifest import Manifest
from protocol.units import format_bytes
from receiver.agent import Agent, AgentOptions, Observer, Reception
from receiver.control_client import (
    ControlClient,
    require_plausible_manifest,
    retry_until,
)
from receiver.discovery import CastChoice, CastOffer, ask_for_cast, listen_for_cast
from receiver.disk.queue_settings import tuned_queue
from receiver.dry_run import DryRun, dry_run
from receiver.feedback_socket import FeedbackSocket
from receiver.manifest_store import manifest_store
from receiver.network import Interface, find_interface
from receiver.target import Target
from receiver.target_image import TargetImage
from receiver.target_options import TargetOptions, open_chosen
from receiver.transport import DataSocket

_DMI: Final = Path("/sys/class/dmi/id")
_DMI_FIELDS: Final = ("sys_vendor", "product_name", "product_serial")


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """What the operator asked for."""

    target: str
    target_options: TargetOptions
    interface: str
    sender_url: str | None
    group: str
    port: int
    choice: CastChoice
    wait_s: float
    agent: AgentOptions


async def receive_image(
    options: ReceiveOptions,
    observer: Observer,
    watch: Callable[[Agent], contextlib.AbstractContextManager[None]],
) -> Reception:
    """Receive one image.

    The target is opened and checked before the agent joins, so that a refusal costs the room nothing.

    Args:
        options: what the operator asked for.
        observer: is told how it goes.
        watch: entered while the agent runs: who reads its status, for metrics.

    Raises:
        DiskcastError: as :meth:`receiver.agent.Agent.run`, and all that finding the cast and opening the target raise.
    """
    interface = find_interface(options.interface, options.group)
    client, offer = await _find_cast(options, interface)
    deadline = trio.current_time() + options.wait_s
    cast = await retry_until(deadline, functools.partial(client.cast, offer.cast_id))
    if cast.group != options.group:
        interface = find_interface(options.interface, cast.group)
    source = offer.source or cast.sender_address
    open_data = functools.partial(_open_data, interface, cast, source)
    with (
        await _open_target(options, cast) as target,
        tuned_queue(target),
        contextlib.closing(TargetImage(target, options.target_options)) as image,
        FeedbackSocket(interface, cast.sender_address) as feedback,
    ):
        agent = Agent(
            cast.cast_id,
            image,
            control=client,
            open_data=open_data,
            send_feedback=feedback.send,
            options=dataclasses.replace(options.agent, inventory=_inventory(interface, target)),
            observer=observer,
            rng=random.Random(),
        )
        with watch(agent):
            return await agent.run(cast.symbol_bytes)


async def _find_cast(options: ReceiveOptions, interface: Interface) -> tuple[ControlClient, CastOffer]:
    if options.sender_url is not None:
        client = ControlClient(options.sender_url)
        return client, await ask_for_cast(client, options.choice, wait_s=options.wait_s)
    offer = await listen_for_cast(
        interface, options.group, options.port, options.choice, wait_s=options.wait_s
    )
    return ControlClient(offer.control_url), offer


def _open_data(interface: Interface, cast: CastDescription, source: str, frame_bytes: int) -> DataSocket:
    return DataSocket(interface, cast.group, cast.port, source=source, frame_bytes=frame_bytes)


async def _open_target(options: ReceiveOptions, cast: CastDescription) -> Target:
    open_it = functools.partial(open_chosen, options.target, options.target_options, raw_bytes=cast.raw_bytes)
    return await trio.to_thread.run_sync(open_it)


async def try_receive(options: ReceiveOptions) -> DryRun:
    """Find the cast and say what receiving it would do to the target; nothing is changed, nobody joins.

    Raises:
        DiskcastError: what would be refused, or the sender can't be reached.
    """
    interface = find_interface(options.interface, options.group)
    client, offer = await _find_cast(options, interface)
    deadline = trio.current_time() + options.wait_s
    cast = await retry_until(deadline, functools.partial(client.cast, offer.cast_id))
    with await _open_target(options, cast) as target:
        require_plausible_manifest(cast.raw_bytes, cast.block_bytes, cast.manifest_bytes)
        store = manifest_store(cast.manifest_bytes)
        await retry_until(deadline, functools.partial(client.manifest, offer.cast_id, store))
        manifest = Manifest.parse_untrusted(store.collected())
        if manifest.image_id != cast.image_id or manifest.raw_bytes != cast.raw_bytes:
            raise CastFailedError(
                "the sender's manifest isn't that of the image it announces: start the cast again"
            )
        return await trio.to_thread.run_sync(dry_run, target, manifest, options.target_options)


def _inventory(interface: Interface, target: Target) -> dict[str, str]:
    """What the operator may want to know about this machine; only what can be read without effort."""
    inventory = {
        "host": platform.node(),
        "kernel": platform.release(),
        "processors": str(os.cpu_count()),
        "memory": format_bytes(psutil.virtual_memory().total),
        "interface": f"{interface.name} {interface.hardware_address}".strip(),
        "address": interface.address,
        "target": str(target.path),
        "target_bytes": str(target.size_bytes),
    }
    for field in _DMI_FIELDS:
        with contextlib.suppress(OSError):  # no DMI here, or not for us
            inventory[field] = (_DMI / field).read_text().strip()
    return {name: value for name, value in inventory.items() if value}
