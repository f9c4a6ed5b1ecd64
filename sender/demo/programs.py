"""Running diskcast's programs as processes of the demo: their JSON lines, their last words, and their end."""

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
"""A program on the terminal has had the user's Ctrl-C already; a second one would cut its farewell short."""
STOP_TIMEOUT_S = 5.0
"""How long a program may take to end itself when it is asked to."""
LAST_WORDS_BYTES = 2000

OnEvent = Callable[[dict[str, object]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """One started process."""

    process: asyncio.subprocess.Process
    log: Path
    attached: bool
    """It shows its own progress on this terminal and belongs to the terminal's process group."""

    async def wait(self, on_event: OnEvent | None = None) -> int:
        """Its exit code; meanwhile its JSON lines are handed over."""
        if self.process.stdout is not None:
            async for line in self.process.stdout:
                if on_event is not None and line.startswith(b"{"):
                    on_event(json.loads(line))
        return await self.process.wait()

    def last_words(self) -> str:
        """The end of what it wrote to its standard error; empty when that was the terminal."""
        if self.attached:
            return ""
        lines = self.log.read_text(errors="replace")[-LAST_WORDS_BYTES:].strip().splitlines()
        return lines[-1] if lines else ""

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)


class Programs:
    """The processes of one demo; leaving the context ends those that still run.

    Args:
        directory: for what they write to their standard error.
        attach: whether programs may use this terminal.
    """

    def __init__(self, directory: Path, *, attach: bool) -> None:
        self._directory = directory
        self._attach = attach
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
            name: for its log.
            shown: it may show its progress on this terminal, if there is one; else it prints JSON lines.
            environment: added to this program's own.
        """
        attached = shown and self._attach
        log = self._directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments, *([] if attached else ["--json"])),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL if attached else subprocess.PIPE,
                stderr=None if attached else stderr,
                # Ctrl-C ends the sender and the demo; the demo then ends these in its own order.
                start_new_session=not attached,
            )
        program = Program(process, log, attached)
        self._started.append(program)
        return program

    async def end(self) -> None:
        """End what still runs: politely, and after a while by force."""
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
        await self.end()


async def _wait_all(programs: list[Program], timeout_s: float) -> list[Program]:
    """Wait for programs to end; those that still run after the timeout.

    Works in a task that has been cancelled, where ``asyncio.timeout`` of Python 3.11 lets its own cancellation out.
    """
    if programs:
        endings = [asyncio.ensure_future(program.process.wait()) for program in programs]
        _, pending = await asyncio.wait(endings, timeout=timeout_s)
        for ending in pending:
            ending.cancel()
    return [program for program in programs if program.process.returncode is None]
