"""Serve the metrics of ``diskcast send`` over HTTP."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from protocol.errors import AddressInUseError, ConfigurationError
from sender.http.rejections import HTTP_REJECTIONS


@contextlib.contextmanager
def metrics_server(collector: Collector, address: str, port: int) -> Iterator[int]:
    """Serve ``/metrics`` in a thread during the context, and yield the port.

    Raises:
        AddressInUseError: the port is in use.
        ConfigurationError: ``address`` isn't one of this machine, or the port isn't allowed.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    registry.register(HTTP_REJECTIONS)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"the metrics port {port} of {address} is in use: choose another with --metrics-port"
            ) from error
        raise ConfigurationError(
            f"can't serve metrics on {address} port {port}: {error}; choose others with --metrics-address and "
            "--metrics-port"
        ) from error
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
