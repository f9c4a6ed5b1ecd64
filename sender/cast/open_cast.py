"""Open a cast: check its settings, bind its sockets and derive the parameters that receivers get."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator

from blake3 import blake3

from protocol.constants import CONTROL_PORT_DEFAULT, SOURCE_SYMBOLS_MAX
from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.model.session_records import CastId, CastParameters
from protocol.shared.units import format_bytes
from sender.addresses import IpAddress, parse_endpoint, parse_group
from sender.cast.cast_run import CastRun
from sender.cast.cast_settings import CastSettings
from sender.cast.network.interfaces import MulticastInterface, choose_symbol_bytes, find_interface
from sender.cast.network.sockets import (
    CastSockets,
    bind_control_sockets,
    open_announce_listener,
    open_data_socket,
)
from sender.cast.reporting.reporter import Reporter
from sender.cast.session.admission import CastAccess
from sender.cast.session.control_api import MatchMachine, no_matching
from sender.cast.session.machine_patches import MachinePatches, NoPatches
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature, SignatureState


@contextlib.contextmanager
def open_cast(
    settings: CastSettings,
    image: ImageFile,
    reporter: Reporter,
    grant_access: Callable[[CastId], CastAccess],
    match_machine: MatchMachine = no_matching,
    patches: MachinePatches | None = None,
) -> Iterator[CastRun]:
    """Open a cast with its sockets, to be run in the current event loop.

    Args:
        settings: image, interface, policy and addresses.
        image: the image of ``settings``, opened; the caller closes it.
        reporter: gets progress and events.
        grant_access: returns the way into the cast with this id.
        match_machine: replaces the identity in a request to join by the machine's known one.
        patches: the machines' patches; None to cast the image alone.

    Raises:
        ConfigurationError: the settings can't work; nothing was sent.
        UnsignedImageError: the image's signature is invalid.
    """
    interface = find_interface(settings.interface)
    group = parse_group(settings.group)
    address = interface.address_for(group)
    symbol_bytes = choose_symbol_bytes(interface, group.version, settings.symbol_bytes)
    _check_block_bytes(image.manifest.block_bytes, symbol_bytes)
    with contextlib.ExitStack() as stack:
        signature = _signature(settings, image)
        # Bind all ports before sending: a second sender, started by mistake, must fail before the group hears it.
        sockets = _open_sockets(settings, interface, group, address, stack)
        parameters = _parameters(settings, image, signature, group, address, symbol_bytes, sockets)
        if signature.signed is None:
            reporter.note(
                "the image isn't signed, so machines refuse it unless they run with --allow-unsigned: sign it with "
                f"`diskcast sign {image.path}`"
            )
        access = grant_access(parameters.cast_id)
        yield CastRun(
            settings, image, parameters, sockets, reporter, access, match_machine, patches or NoPatches()
        )


def derive_cast_id(image_id: bytes, group: IpAddress, port: int, sender_address: IpAddress) -> CastId:
    """Return the same id when the same command runs again, so that a room waits through a restart of its sender."""
    identity = image_id + f"{group}|{port}|{sender_address}".encode()
    return CastId(int.from_bytes(blake3(identity).digest(length=4)))


def _open_sockets(
    settings: CastSettings,
    interface: MulticastInterface,
    group: IpAddress,
    address: IpAddress,
    stack: contextlib.ExitStack,
) -> CastSockets:
    host, port = parse_endpoint(settings.control, CONTROL_PORT_DEFAULT)
    control, feedback = bind_control_sockets(host, port, interface, address)
    stack.enter_context(control)
    stack.enter_context(feedback)
    data = stack.enter_context(open_data_socket(interface, address, group, settings.port, ttl=settings.ttl))
    announcements = stack.enter_context(open_announce_listener(interface, group, settings.port))
    return CastSockets(data, control, feedback, announcements)


def _signature(settings: CastSettings, image: ImageFile) -> ImageSignature:
    """Return the signature to announce.

    Raises:
        UnsignedImageError: the image has one, but it is invalid: every machine would refuse it.
    """
    signature = settings.signature or ImageSignature.of(image.header)
    if signature.state is SignatureState.INVALID:
        raise UnsignedImageError(f"{image.path}: {signature.problem}")
    return signature


def _check_block_bytes(block_bytes: int, symbol_bytes: int) -> None:
    if block_bytes > SOURCE_SYMBOLS_MAX * symbol_bytes:
        largest = 1 << (SOURCE_SYMBOLS_MAX * symbol_bytes).bit_length() - 1
        raise ConfigurationError(
            f"blocks of {format_bytes(block_bytes)} don't fit in {SOURCE_SYMBOLS_MAX} symbols of {symbol_bytes} bytes: "
            f"pack the image with --block-size {format_bytes(largest).replace(' ', '')} or smaller, or cast with a "
            f"--symbol-size of at least {-(-block_bytes // SOURCE_SYMBOLS_MAX)} on an interface with a larger MTU"
        )


def _parameters(
    settings: CastSettings,
    image: ImageFile,
    signature: ImageSignature,
    group: IpAddress,
    address: IpAddress,
    symbol_bytes: int,
    sockets: CastSockets,
) -> CastParameters:
    manifest = image.manifest
    signed, statement = signature.signed, signature.statement
    host, _port = parse_endpoint(settings.control, CONTROL_PORT_DEFAULT)
    if host is None or host.is_unspecified:
        host = address
    url_host = f"[{host}]" if host.version == 6 else str(host)
    cast_id = settings.cast_id
    if cast_id is None:
        cast_id = derive_cast_id(manifest.image_id, group, settings.port, address)
    return CastParameters(
        cast_id=cast_id,
        incarnation=secrets.randbits(32),
        image_id=manifest.image_id,
        image_name=manifest.name if statement is None else statement.name,
        raw_bytes=manifest.raw_bytes,
        block_bytes=manifest.block_bytes,
        manifest_bytes=len(manifest.data),
        symbol_bytes=symbol_bytes,
        group=str(group),
        port=settings.port,
        sender_address=str(address),
        feedback_port=sockets.feedback.getsockname()[1],
        control_url=f"https://{url_host}:{sockets.control.getsockname()[1]}",
        encrypted=settings.encrypt,
        statement="" if signed is None else signed.statement.decode("ascii"),
        signature="" if signed is None else signed.signature,
        signer="" if signature.signer is None else signature.signer.text,
    )
