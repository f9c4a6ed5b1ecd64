"""A cast between real programs on the loopback interface: without namespaces, on ports of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.program.options import JOIN_VARIABLE
from tests.support.network.lab import LIMIT_S, Program, diskcast, diskcast_agent
from tests.support.network.ports import free_port_range

RECEIVER_BYTES_MAX = 300_000_000
"""Most resident memory of an agent, whatever the image and the disk."""


def pack(source: Path, image: Path, *options: str) -> Path:
    """Run ``diskcast pack``."""
    with Program(diskcast("pack", source, "-o", image, "--json", *options)) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return image


class LoopbackCast:
    """A running sender and its agents; a context manager that ends them all.

    Args:
        image: the image to cast.
        options: options of ``diskcast send``.
    """

    def __init__(self, image: Path, *options: str) -> None:
        self._exit = contextlib.ExitStack()
        data_port, control_port = free_port_range(2)
        where = ("--interface", "lo", "--port", str(data_port), "--control", f"127.0.0.1:{control_port}")
        argv = self.command("send", image, *where, "--symbol-size", "1440", "--json", *options)
        self.sender = self._exit.enter_context(Program(argv))
        self.url = ""
        self.join_code = ""

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line of the sender."""
        return diskcast(*arguments)

    def __enter__(self) -> Self:
        try:
            started = self.sender.wait_event("cast_started", LIMIT_S)
            self.url, self.join_code = started["control_url"], started["join_code"]
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit.close()

    def receive(self, target: Path, *options: str, environment: dict[str, str] | None = None) -> Program:
        """Start ``diskcast-agent receive``."""
        where = ("--interface", "lo", "--sender", self.url)
        argv = diskcast_agent("receive", "--target", target, *where, "--json", *options)
        environment = {JOIN_VARIABLE: self.join_code, **(environment or {})}
        return self._exit.enter_context(Program(argv, environment=environment))


def assert_memory_kept(programs: Sequence[Program]) -> None:
    """Assert that every ended agent stayed within its memory limit."""
    for program in programs:
        assert program.usage is not None
        assert program.usage.peak_bytes <= RECEIVER_BYTES_MAX, program.describe()
