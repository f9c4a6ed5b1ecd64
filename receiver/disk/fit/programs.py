"""Running the partition and filesystem tools: bounded in time and output, undisturbed by Ctrl-C, failures in words."""

from __future__ import annotations

import contextlib
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

TABLE_TIME_LIMIT_S: Final = 180.0
"""A partition table is a few sectors; a disk that needs a minute for its own error recovery may do so twice."""

MOUNT_TIME_LIMIT_S: Final = 900.0
"""Mounting replays at most one journal; some minutes on a slow, fragmented disk."""

FILESYSTEM_TIME_LIMIT_S: Final = 4 * 3600.0
"""A full check of a disk of many terabytes takes hours; only a tool that hangs is meant to end here."""

FIRMWARE_TIME_LIMIT_S: Final = 120.0
"""The firmware's store takes tenths of a second a write, a tidy-up of it some seconds."""

_OUTPUT_BYTES_MAX: Final = 256 * 1024
"""A filesystem check can print a line for every file."""
_LAST_LINES_MAX: Final = 4
_LAST_CHARS_MAX: Final = 400
_GRACE_S: Final = 10.0
"""From SIGTERM to SIGKILL, and from there until a process that the disk holds fast is left to itself."""

_SYSTEM_PATH: Final = ("/usr/sbin", "/sbin")
"""Where these tools are, and what the search path of a root shell made by ``su`` lacks."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\S\n]+|[\x00-\x09\x0b-\x1f\x7f]")

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sfdisk": "fdisk",
        "sgdisk": "gdisk",
        "mount": "mount",
        "umount": "mount",
        "e2fsck": "e2fsprogs",
        "resize2fs": "e2fsprogs",
        "xfs_growfs": "xfsprogs",
        "xfs_repair": "xfsprogs",
        "btrfs": "btrfs-progs",
        "ntfsresize": "ntfs-3g",
        "efibootmgr": "efibootmgr",
        "mdir": "mtools",
    }
)
"""The Debian package of every program that fitting starts."""

T = TypeVar("T")


class StepError(Exception):
    """A step of fitting failed; the message names the tool, its last lines, or the cause in words."""


def find_program(name: str) -> str | None:
    """Its path, or None where it isn't installed."""
    return shutil.which(name, path=_search_path())


def missing_programs(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that aren't installed."""
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
            f"{purpose} needs {' and '.join(missing)}, which this system lacks: apt install {packages} (Debian's "
            "names), or run without; nothing was written"
        )


def run_program(
    argv: Sequence[str | Path],
    *,
    time_limit_s: float,
    right_codes: Sequence[int] = (0,),
    text: str = "",
) -> str:
    """Run a tool and return what it printed, both streams in one, at most the last 256 KiB.

    It has a session of its own: Ctrl-C at the terminal, which signals the whole foreground process group, doesn't cut
    a filesystem tool short, and the tool ends by itself when this process is killed.

    Args:
        argv: program and arguments; no shell.
        time_limit_s: after that it is ended, by SIGTERM first.
        right_codes: exit codes that mean success.
        text: its standard input.

    Raises:
        StepError: it isn't installed, failed, or took too long.
    """
    name = str(argv[0])
    path = find_program(name)
    if path is None:
        raise StepError(f"{name} isn't installed (Debian package {PACKAGES.get(name, name)})")
    try:
        process = subprocess.Popen(
            [path, *map(str, argv[1:])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", "PATH": _search_path(), "MTOOLS_SKIP_CHECK": "1"},
            cwd="/",
            start_new_session=True,
            restore_signals=False,  # SIGPIPE stays ignored: printing doesn't end a tool whose reader was killed
        )
    except OSError as error:
        raise StepError(f"{name} can't be started: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        # One that doesn't read is judged by its exit code.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())
        output, in_time = _collect(process, time_limit_s)
    if not in_time:
        raise StepError(f"{name} didn't end within {time_limit_s:g} s: {last_lines(output)}")
    if process.returncode not in right_codes:
        code = process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"failed (exit code {code})"
        raise StepError(f"{name} {how}: {last_lines(output)}")
    return output


def _collect(process: subprocess.Popen[bytes], time_limit_s: float) -> tuple[str, bool]:
    """Its output, and whether it ended in time."""
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
    in_time = in_time and _ended(process, max(0.0, deadline_s - time.monotonic()))
    if not in_time:
        for end in (process.terminate, process.kill):
            end()
            if _ended(process, _GRACE_S):
                break
    return output.decode(errors="replace"), in_time


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def last_lines(output: str) -> str:
    """The end of a tool's output on one line, without what a terminal would make of it."""
    lines = [_CONTROL.sub(" ", line).strip() for line in output.replace("\r", "\n").splitlines()]
    text = " / ".join([line for line in lines if line][-_LAST_LINES_MAX:])
    return text[-_LAST_CHARS_MAX:] or "it said nothing"


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATH])


@contextlib.contextmanager
def _noting_ctrl_c(interrupted: threading.Event) -> Iterator[None]:
    """Ctrl-C sets ``interrupted`` meanwhile, and raises nothing; only the main thread is asked about it at all."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


class Undisturbed(Generic[T]):
    """Work in a thread of its own, which Ctrl-C doesn't reach: it ends between two steps, never in the middle of one.

    The thread also keeps what the work does to its own mount namespace (:mod:`receiver.disk.fit.mount`) from the rest
    of the process.
    """

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        """``work`` is given a function that it calls before each step; that ends the work after a Ctrl-C."""
        self._work = work
        self._interrupted = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> T:
        """Do it and return its result; what it raises is raised here.

        Raises:
            KeyboardInterrupt: Ctrl-C came; raised when the step that was under way had ended.
        """
        thread = threading.Thread(target=self._run, name="fit")
        with _noting_ctrl_c(self._interrupted):
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
        except BaseException as error:  # noqa: BLE001  carried to the thread that waits, whatever it is
            self._error = error

    def _check(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
