"""Run diskcast's programs as processes of the demo: read their JSON lines and error output, and stop them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

TERMINAL_TIMEOUT_S = 1.0
"""Time for a program on the terminal, which got the user's Ctrl-C itself; a second one would skip its clean-up."""
STOP_TIMEOUT_S = 5.0
"""Time for a program to exit after SIGINT."""
LOG_TAIL_BYTES = 2000

OnEvent = Callable[[dict[str, object]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A started process."""

    process: asyncio.subprocess.Process
    log: Path
    attached: bool
    """True if it shows its progress on this terminal and belongs to the terminal's process group."""

    async def wait(self, on_event: OnEvent | None = None) -> int:
        """Pass its JSON lines to ``on_event`` and return its exit code."""
        if self.process.stdout is not None:
            async for line in self.process.stdout:
                if on_event is not None and line.startswith(b"{"):
                    on_event(json.loads(line))
        return await self.process.wait()

    def last_error_line(self) -> str:
        """Return the last line of its standard error; empty if that was the terminal."""
        if self.attached:
            return ""
        lines = self.log.read_text(errors="replace")[-LOG_TAIL_BYTES:].strip().splitlines()
        return lines[-1] if lines else ""

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)


def config_directory(directory: Path) -> Path:
    """Return the place of the programs' keys and certificates in a demo's directory."""
    return directory / "config"


class Programs:
    """The processes of one demo; leaving the context stops those that still run."""

    def __init__(self, directory: Path, *, attach: bool) -> None:
        """Start no process yet.

        Args:
            directory: for the logs, the programs' standard errors, and for the programs' keys and certificates: a demo
                leaves the user's own alone.
            attach: allow programs to use this terminal.
        """
        self._directory = directory
        self._attach = attach
        self._environment = {"XDG_CONFIG_HOME": str(config_directory(directory))}
        self._started: list[Program] = []

    async def start(
        self,
        module: str,
        arguments: list[str],
        *,
        name: str,
        shown: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Program:
        """Start ``python -m MODULE``.

        Args:
            module: ``sender`` or ``receiver``.
            arguments: its command line.
            name: name of its log.
            shown: show its progress on this terminal, if there is one; otherwise it prints JSON lines.
            environment: added to this program's own.
        """
        attached = shown and self._attach
        log = self._directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments, *([] if attached else ["--json"])),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environment, **environment},
                stdout=subprocess.DEVNULL if attached else subprocess.PIPE,
                stderr=None if attached else stderr,
                # Ctrl-C stops the sender and the demo; the demo then stops these programs in its own order.
                start_new_session=not attached,
            )
        program = Program(process, log, attached)
        self._started.append(program)
        return program

    async def stop(self) -> None:
        """Stop the running programs by SIGINT, and those that don't exit in time by SIGKILL."""
        running = [program for program in self._started if program.process.returncode is None]
        await _wait_all([program for program in running if program.attached], TERMINAL_TIMEOUT_S)
        for program in running:
            if program.process.returncode is None:
                program.interrupt()
        for program in await _wait_all(running, STOP_TIMEOUT_S):
            with contextlib.suppress(ProcessLookupError):
                program.process.kill()
            await program.process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


async def _wait_all(programs: list[Program], timeout_s: float) -> list[Program]:
    """Wait for programs to exit and return those that still run after the timeout.

    Works in a task that has been cancelled, where ``asyncio.timeout`` of Python 3.11 lets its own cancellation out.
    """
    if programs:
        exits = [asyncio.ensure_future(program.process.wait()) for program in programs]
        _, pending = await asyncio.wait(exits, timeout=timeout_s)
        for task in pending:
            task.cancel()
    return [program for program in programs if program.process.returncode is None]
