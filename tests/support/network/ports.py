"""Ports of this process alone, also when several test processes look for theirs at the same moment.

A port that is found free and bound later may be somebody else's by then. So each process claims a region for as long as
it lives, by a name that the kernel gives to one process at a time and takes back when that ends, however it ends.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import Final

from tests.support.network.lab import LabError

_PORTS: Final = range(20000, 32000)
"""Below what the kernel gives to those who don't choose."""
_REGION_PORT_COUNT: Final = 250
"""Forty-eight processes' worth; a process uses a few dozen ports at a time, and all in turn."""


def free_port_range(count: int) -> range:
    """Consecutive ports that nobody uses now, neither by TCP nor by UDP, and that no other test process is given.

    Raises:
        LabError: there are none.
    """
    turns = _turns()
    for _ in range(2 * _REGION_PORT_COUNT):
        ports = turns.take(count)
        if all(map(_is_free, ports)):
            return ports
    raise LabError(f"no {count} free ports in a row")


class _Turns:
    """A region's ports, one after the other, so that one that was used lately comes last."""

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
def _turns() -> _Turns:
    for start in range(_PORTS.start, _PORTS.stop, _REGION_PORT_COUNT):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0diskcast-tests-ports-{start}")  # abstract: in no folder, and gone with the process
        except OSError:
            claim.close()
            continue
        return _Turns(claim, range(start, start + _REGION_PORT_COUNT))
    raise LabError("every region of ports is claimed: too many test processes at once")


def _is_free(port: int) -> bool:
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            # On every address: a cast on another interface mustn't be heard here.
            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", port))
        return True
    return False
