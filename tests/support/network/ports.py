"""Ports that belong to this test process alone, even if several test processes look for ports at the same time.

A port that is found free and bound later may be taken by then. So each process claims a region for its lifetime, by an
abstract socket name, which the kernel gives to one process at a time and frees when that process ends.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import Final

from tests.support.network.lab import LabError

_PORTS: Final = range(20000, 32000)
"""Ports below the kernel's ephemeral ones."""
_REGION_PORT_COUNT: Final = 250
"""Ports per region: enough regions for 48 processes, each of which uses a few dozen ports at a time."""


def free_port_range(count: int) -> range:
    """Return consecutive ports that are free for TCP and UDP and belong to this test process alone.

    Raises:
        LabError: there are none.
    """
    rotation = _rotation()
    for _ in range(2 * _REGION_PORT_COUNT):
        ports = rotation.take(count)
        if all(map(_is_free, ports)):
            return ports
    raise LabError(f"no {count} free ports in a row")


class _PortRotation:
    """Ports of a region in rotation: a recently used one comes last."""

    def __init__(self, claim: socket.socket, ports: range) -> None:
        self._claim = claim  # for as long as this process lives
        self._ports = ports
        self._next = 0

    def take(self, count: int) -> range:
        if self._next + count > len(self._ports):
            self._next = 0
        taken = self._ports[self._next : self._next + count]
        self._next += count
        return taken


@functools.cache
def _rotation() -> _PortRotation:
    for start in range(_PORTS.start, _PORTS.stop, _REGION_PORT_COUNT):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(
                f"\0diskcast-tests-ports-{start}"
            )  # abstract: in no directory, and freed with the process
        except OSError:
            claim.close()
            continue
        return _PortRotation(claim, range(start, start + _REGION_PORT_COUNT))
    raise LabError("every region of ports is claimed: too many test processes at once")


def _is_free(port: int) -> bool:
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            # On every address: a cast on another interface mustn't be heard here.
            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", port))
        return True
    return False
