"""Run the one cast of ``diskcast send``, with its signals and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from sender.cast.cast_run import CastResult
from sender.cast.cast_settings import CastSettings
from sender.cast.open_cast import open_cast
from sender.cast.reporting.reporter import Reporter
from sender.http.descriptor_limit import raise_descriptor_limit
from sender.imaging.image_file import ImageFile
from sender.metrics.cast_collector import SingleCastCollector
from sender.metrics.metrics_server import metrics_server


def run_cast(
    settings: CastSettings, reporter: Reporter, *, metrics_address: str, metrics_port: int | None
) -> CastResult:
    """Run one cast to its end, from the main thread, which gets SIGINT and SIGTERM.

    Args:
        settings: image, interface, policy and addresses.
        reporter: gets progress and events.
        metrics_address: address for Prometheus.
        metrics_port: TCP port for Prometheus; None for no metrics.

    Raises:
        ConfigurationError: the settings can't work; nothing was sent.
        ImageError: the image can't be used, or was altered during the cast.
        StorageError: the image can't be read any more.
    """
    return asyncio.run(_run_interruptible(settings, reporter, metrics_address, metrics_port))


async def _run_interruptible(
    settings: CastSettings, reporter: Reporter, metrics_address: str, metrics_port: int | None
) -> CastResult:
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(ImageFile.open(settings.image))
        cast = stack.enter_context(open_cast(settings, image, reporter))
        if metrics_port is not None:
            collector = SingleCastCollector(cast.locked_session, cast.transmitter.statistics, cast.feedback)
            metrics_port = stack.enter_context(metrics_server(collector, metrics_address, metrics_port))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cast.interrupt)
            stack.callback(loop.remove_signal_handler, number)
        return await cast.run(metrics_port=metrics_port)
