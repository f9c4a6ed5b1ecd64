"""Running partition and filesystem tools, with bounded time and output and protected from Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from protocol.errors import MissingDependencyError
from protocol.program.confinement import ENVIRONMENT, Confinement, ToolDevice, device_of

TABLE_TIME_LIMIT_S: Final = 180.0
"""Time limit for a few sectors of a partition table; a disk may need a minute for its error recovery, twice."""

MOUNT_TIME_LIMIT_S: Final = 900.0
"""Time limit for mounting, which replays at most one journal: some minutes on a slow, fragmented disk."""

FILESYSTEM_TIME_LIMIT_S: Final = 4 * 3600.0
"""Time limit for a filesystem tool that hangs; a full check of many terabytes takes hours."""

FIRMWARE_TIME_LIMIT_S: Final = 120.0
"""Time limit for firmware changes: a write takes tenths of a second, garbage collection some seconds."""

_OUTPUT_BYTES_MAX: Final = 256 * 1024
"""Limit of kept output: a filesystem check can print a line for every file."""
_LAST_LINES_MAX: Final = 4
_LAST_CHARS_MAX: Final = 400
_GRACE_S: Final = 10.0
"""Time from SIGTERM to SIGKILL, and then until a process that is stuck in a disk call is abandoned."""

_SYSTEM_PATH: Final = ("/usr/sbin", "/sbin")
"""Directories of these tools, missing in the search path of a root shell opened by ``su``."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[^\S\n]+")
"""Control sequences that a tool prints from an image, such as a label that sets the terminal's title."""

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sfdisk": "fdisk",
        "sgdisk": "gdisk",
        "mount": "mount",
        "umount": "mount",
        "e2fsck": "e2fsprogs",
        "resize2fs": "e2fsprogs",
        "xfs_growfs": "xfsprogs",
        "xfs_logprint": "xfsprogs",
        "xfs_repair": "xfsprogs",
        "btrfs": "btrfs-progs",
        "ntfsresize": "ntfs-3g",
        "efibootmgr": "efibootmgr",
        "systemctl": "systemd",
    }
)
"""The Debian package of every program that the agent runs."""

T = TypeVar("T")


class StepError(Exception):
    """A failed step of fitting; the message names the tool and its last lines, or the cause."""


def parser_of(device: ToolDevice | Path, *, writable: bool = False) -> Confinement:
    """Return the privileges of a tool that reads what the image has put on ``device``, and may write there only."""
    if isinstance(device, Path):
        device = device_of(device)
    return Confinement((dataclasses.replace(device, writable=writable),), sigpipe_ignored=True)


def find_program(name: str) -> str | None:
    """Return the path of a program; None if it isn't installed."""
    return shutil.which(name, path=_search_path())


def missing_programs(names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that aren't installed."""
    return [name for name in names if find_program(name) is None]


def require_programs(names: Iterable[str], purpose: str) -> None:
    """Refuse when one of ``names`` isn't installed.

    Raises:
        MissingDependencyError: the message names the Debian packages.
    """
    missing = missing_programs(names)
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        raise MissingDependencyError(
            f"{purpose} needs {' and '.join(missing)}, which isn't installed: apt install {packages} (Debian's package "
            "names), or run without it; nothing was written"
        )


def run_program(
    argv: Sequence[str | Path],
    *,
    confinement: Confinement | None,
    time_limit_s: float,
    success_codes: Sequence[int] = (0,),
    text: str = "",
    variables: Iterable[str] = (),
) -> str:
    """Run a tool and return its output, both streams combined, at most the last 256 KiB.

    The tool has a session of its own: Ctrl-C at the terminal, which signals the whole foreground process group, doesn't
    interrupt a filesystem tool, and the tool finishes even if this process is killed.

    Args:
        argv: program and arguments; no shell.
        confinement: privileges of the tool; None for a program that reads nothing of an image.
        time_limit_s: time after which the tool is stopped, first by SIGTERM.
        success_codes: exit codes that mean success.
        text: its standard input.
        variables: names of variables that it gets from this process's environment, if they are set there.

    Raises:
        StepError: the tool isn't installed, failed, or took too long.
    """
    name = str(argv[0])
    path = find_program(name)
    if path is None:
        raise StepError(f"{name} isn't installed (Debian package {PACKAGES.get(name, name)})")
    command = [path, *map(str, argv[1:])]
    if confinement is not None:
        command = confinement.wrap(path, [name, *command[1:]], time_limit_s=time_limit_s)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **{name: os.environ[name] for name in variables if name in os.environ}},
            cwd="/",
            start_new_session=True,
            restore_signals=False,  # SIGPIPE stays ignored: a tool whose reader was killed can still print
        )
    except OSError as error:
        raise StepError(f"{name} can't be started: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        # A tool that doesn't read its input is judged by its exit code.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())
        output, in_time = _collect(process, time_limit_s)
    if not in_time:
        raise StepError(f"{name} didn't exit within {time_limit_s:g} s: {last_lines(output)}")
    if process.returncode not in success_codes:
        code = process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"failed with code {code}"
        raise StepError(f"{name} {how}: {last_lines(output)}")
    return output


def _collect(process: subprocess.Popen[bytes], time_limit_s: float) -> tuple[str, bool]:
    """Return the process's output, and whether it exited in time."""
    assert process.stdout is not None
    deadline_s = time.monotonic() + time_limit_s
    output = bytearray()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    in_time = True
    while in_time:
        in_time = bool(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))
        chunk = os.read(process.stdout.fileno(), 65536) if in_time else b""
        if not chunk:
            break
        output += chunk
        del output[:-_OUTPUT_BYTES_MAX]
    in_time = in_time and _has_exited(process, max(0.0, deadline_s - time.monotonic()))
    if not in_time:
        for stop in (process.terminate, process.kill):
            stop()
            if _has_exited(process, _GRACE_S):
                break
    return output.decode(errors="replace"), in_time


def _has_exited(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def last_lines(output: str) -> str:
    """Return the last lines of a tool's output as one line, without control sequences."""
    printable = "".join(
        char if char.isprintable() or char == "\n" else " "
        for char in _CONTROL.sub(" ", output.replace("\r", "\n"))
    )
    lines = [" ".join(line.split()) for line in printable.split("\n")]
    text = " / ".join([line for line in lines if line][-_LAST_LINES_MAX:])
    return text[-_LAST_CHARS_MAX:] or "no output"


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATH])


@contextlib.contextmanager
def _record_sigint(interrupted: threading.Event) -> Iterator[None]:
    """Let Ctrl-C set ``interrupted`` instead of raising; only the main thread handles signals."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


class UninterruptedWork(Generic[T]):
    """Work in a thread of its own that Ctrl-C stops only between two steps, never in the middle of one.

    The thread also confines the work's private mount namespace (:mod:`receiver.disk.fit.mount`).
    """

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        """Prepare ``work``, which calls its argument before each step; that call raises after a Ctrl-C."""
        self._work = work
        self._interrupted = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> T:
        """Run the work and return its result; its errors are raised here.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; raised after the current step has finished.
        """
        thread = threading.Thread(target=self._run, name="fit")
        with _record_sigint(self._interrupted):
            thread.start()
            thread.join()
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._check))
        except BaseException as error:  # noqa: BLE001  any error is passed to the waiting thread
            self._error = error

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
