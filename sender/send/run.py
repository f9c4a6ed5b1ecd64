"""Run the one cast of ``diskcast send``, with its signals and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from protocol.model.session_records import CastId
from protocol.trust.join_code import join_code
from protocol.trust.minisign import PublicKey
from sender.cast.cast_run import CastResult
from sender.cast.cast_settings import CastSettings
from sender.cast.open_cast import open_cast
from sender.cast.reporting.reporter import Reporter
from sender.cast.session.admission import CastAccess, JoinSecret, OpenAdmission
from sender.cast.session.machine_patches import MachinePatches
from sender.http.descriptor_limit import raise_descriptor_limit
from sender.identity.certificate import ensure_certificate
from sender.identity.directories import user_directory
from sender.identity.join_key import ensure_join_key
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.metrics.cast_collector import SingleCastCollector
from sender.metrics.metrics_server import metrics_server


def run_cast(
    settings: CastSettings,
    reporter: Reporter,
    *,
    open_to_all: bool,
    metrics_address: str,
    metrics_port: int | None,
    patches: Path | None = None,
) -> CastResult:
    """Run one cast to its end, from the main thread, which gets SIGINT and SIGTERM.

    Args:
        settings: image, interface, policy and addresses.
        reporter: gets progress and events.
        open_to_all: admit machines without the join code.
        metrics_address: address for Prometheus.
        metrics_port: TCP port for Prometheus; None for no metrics.
        patches: folder of the machines' patches; None to cast the image alone.

    Raises:
        ConfigurationError: the settings can't work; nothing was sent.
        ImageError: the image can't be used, or was altered during the cast.
        StorageError: the image can't be read any more.
    """
    grant_access = user_access(open_to_all=open_to_all)
    return asyncio.run(
        _run_interruptible(settings, reporter, grant_access, metrics_address, metrics_port, patches)
    )


def user_access(*, open_to_all: bool) -> Callable[[PublicKey | None, CastId], CastAccess]:
    """Return the access to casts of this user, whose certificate and join key are made at the first cast.

    Args:
        open_to_all: admit machines without the join code.

    Raises:
        ConfigurationError: the user's directory of keys can't be used.
    """
    directory = user_directory()
    certificate = ensure_certificate(directory, socket.gethostname(), datetime.now(UTC))
    tls = certificate.server_context()
    if open_to_all:
        return lambda _signer, _cast_id: CastAccess(OpenAdmission(), tls, certificate.pin)
    key = ensure_join_key(directory)

    def grant(signer: PublicKey | None, cast_id: CastId) -> CastAccess:
        code = join_code(certificate.pin, key, cast_id, signer)
        return CastAccess(JoinSecret(code.secret), tls, certificate.pin, code.text, code.secret)

    return grant


async def _run_interruptible(
    settings: CastSettings,
    reporter: Reporter,
    grant_access: Callable[[PublicKey | None, CastId], CastAccess],
    metrics_address: str,
    metrics_port: int | None,
    patches: Path | None,
) -> CastResult:
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(ImageFile.open(settings.image))
        signer = ImageSignature.of(image.header).signer
        access = functools.partial(grant_access, signer)
        folder = None if patches is None else _open_patches(patches, image.manifest.image_id)
        cast = stack.enter_context(open_cast(settings, image, reporter, access, patches=folder))
        if metrics_port is not None:
            collector = SingleCastCollector(cast.locked_session, cast.transmitter.statistics, cast.feedback)
            metrics_port = stack.enter_context(metrics_server(collector, metrics_address, metrics_port))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cast.interrupt)
            stack.callback(loop.remove_signal_handler, number)
        return await cast.run(metrics_port=metrics_port)


def _open_patches(folder: Path, image_id: bytes) -> MachinePatches:
    # Imported here: casts of the image alone don't wait for templates.
    from sender.send.patch_folder import PatchFolder

    return PatchFolder(folder, image_id)
