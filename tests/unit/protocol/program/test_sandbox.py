"""The sandbox for foreign bytes: a tool that an image has taken over reaches only the files that it was given."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import SandboxUnavailableError
from protocol.program import sandbox
from protocol.program.confinement import CONFINED_USER_ID
from protocol.program.sandbox import ForeignTool, require_sandbox
from protocol.program.system_call_filter import build_filter, denied_numbers
from protocol.program.system_tools import ToolError
from tests.support.programs.confined_code import ATTEMPTS, ORDINARY_USER_ID, run_confined

SECRET = "the domain's secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a secret that every user may read and change."""
    for path in (tmp_path, *tmp_path.parents[:-1]):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o711)
    tmp_path.chmod(0o777)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o666)
    (tmp_path / "image").write_text("image")
    (tmp_path / "image").chmod(0o644)
    return tmp_path


@pytest.fixture
def image_fd(folder: Path) -> Iterator[int]:
    fd = os.open(folder / "image", os.O_RDONLY)
    yield fd
    os.close(fd)


def run(*arguments: str, **options: object) -> str:
    tool = dataclasses.replace(ForeignTool(arguments), **options)  # type: ignore[arg-type]
    return tool.run(MIB).decode()


def test_a_tool_reads_the_named_file_and_no_other(folder: Path, image_fd: int) -> None:
    assert run("cat", f"/proc/self/fd/{image_fd}", reads=(image_fd,)) == "image"
    for path in (folder / "secret", "/etc/passwd", "/proc/self/environ", "/proc/self/maps"):
        with pytest.raises(ToolError, match="Permission denied"):
            run("cat", str(path), reads=(image_fd,))


def test_a_tool_lists_no_folder(folder: Path, image_fd: int) -> None:
    for path in (folder, "/etc", "/usr/lib", "/"):
        with pytest.raises(ToolError, match="Permission denied"):
            run("ls", str(path), reads=(image_fd,))


def test_a_tool_writes_its_spool_up_to_its_limit_and_nothing_else(folder: Path, image_fd: int) -> None:
    spool_fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    path = f"/proc/self/fd/{spool_fd}"
    limits = {"reads": (image_fd,), "writes": (spool_fd,), "written_bytes_max": MIB}
    source_fd = os.open("/dev/zero", os.O_RDONLY)
    run("dd", f"of={path}", "bs=1M", "count=1", "conv=notrunc", stdin_fd=source_fd, **limits)
    assert os.fstat(spool_fd).st_size == MIB
    with pytest.raises(ToolError, match="dd failed"):
        run("dd", f"of={path}", "bs=1M", "count=4", "conv=notrunc", stdin_fd=source_fd, **limits)
    assert os.fstat(spool_fd).st_size == MIB
    for name in ("secret", "new"):
        with pytest.raises(ToolError, match=r"Permission denied|Read-only"):
            run("dd", f"of={folder / name}", "conv=notrunc", **limits)
    assert (folder / "secret").read_text() == SECRET


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("/bin/true & wait", "fork|Operation not permitted"),
        ("exec /usr/bin/id", "Permission denied"),
        ("kill -9 $PPID", "Operation not permitted"),
        ("exec 3<>/dev/tcp/127.0.0.1/{port}", "Operation not permitted|not permitted"),
    ],
)
def test_a_shell_in_the_sandbox_is_of_no_use(script: str, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ToolError, match=reason):
        run("bash", "-c", script.format(port=server.getsockname()[1]))


def test_modes_and_times_of_other_files_stay(folder: Path, image_fd: int) -> None:
    """Landlock doesn't cover them: a tool of the file's owner could open its other files to everybody."""
    status = (folder / "secret").stat()
    os.chown(folder / "image", status.st_uid, -1)
    (folder / "image").chmod(0o600)  # so that the tool's user owns both
    for command in ("chmod 600", "chown 0", "touch -c"):
        with pytest.raises(ToolError, match=r"Operation not permitted|Permission denied"):
            run(*command.split(), str(folder / "secret"), reads=(image_fd,))
    now = (folder / "secret").stat()
    assert (now.st_mode, now.st_uid, now.st_mtime_ns) == (status.st_mode, status.st_uid, status.st_mtime_ns)


def test_memory_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY_BYTES_MAX", 64 * MIB)
    with pytest.raises(ToolError, match="cannot allocate"):
        run("bash", "-c", "printf -v text %200000000s x; echo $?")
    with pytest.raises(ToolError, match="within 1 s"):
        run("bash", "-c", "while :; do :; done", time_limit_s=1)
    with pytest.raises(ToolError, match="wrote nothing for 1 s"):
        run("bash", "-c", "while :; do :; done", stall_limit_s=1)


def test_output_is_bounded() -> None:
    with pytest.raises(ToolError, match="too much output"):
        run("cat", stdin_fd=os.open("/dev/zero", os.O_RDONLY))


@pytest.mark.parametrize("caller", [pytest.param(0, marks=pytest.mark.needs_root), ORDINARY_USER_ID])
def test_no_system_call_leads_out(folder: Path, image_fd: int, caller: int) -> None:
    """The same for root, who gives the tool another user, and for an ordinary user."""
    tool = ForeignTool(("true",), reads=(image_fd,))
    confinement = dataclasses.replace(
        tool.confinement(), user_id=CONFINED_USER_ID if not caller else None, reads=(str(folder / "image"),)
    )
    code = (
        ATTEMPTS
        + """
    import ctypes, threading, fcntl
    libc = ctypes.CDLL(None, use_errno=True)
    folder, pid = sys.argv[1:]
    def call(*arguments):
        if libc.syscall(*map(ctypes.c_long, arguments)) < 0:
            raise OSError(ctypes.get_errno())
    attempt("named file", lambda: os.open(folder + "/image", os.O_RDONLY))
    attempt("thread", lambda: threading.Thread(target=lambda: None).start())
    attempt("other file", lambda: os.open(folder + "/secret", os.O_RDONLY))
    attempt("named file for writing", lambda: os.open(folder + "/image", os.O_WRONLY))
    attempt("folder", lambda: os.listdir(folder))
    attempt("new file", lambda: os.open(folder + "/new", os.O_WRONLY | os.O_CREAT))
    attempt("unnamed file", lambda: os.open(folder, os.O_WRONLY | os.O_TMPFILE))
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
        attempt(f"socket {family}", lambda: socket.socket(family))
    attempt("socket pair", socket.socketpair)
    attempt("process", os.fork)
    attempt("program", lambda: os.execv("/usr/bin/id", ["id"]))
    attempt("signal", lambda: os.kill(int(pid), 0))
    attempt("limits of another process", lambda: resource.prlimit(int(pid), resource.RLIMIT_CORE))
    attempt("input of a terminal", lambda: fcntl.ioctl(0, 0x5412, b"x"))
    attempt("user namespace", lambda: call(272, 0x10000000))
    attempt("ptrace", lambda: call(101, 0))
    attempt("memory of another process", lambda: open(f"/proc/{pid}/mem"))
    attempt("io_uring", lambda: call(425, 1, 0))
    attempt("keys", lambda: call(250, 0, -3, 1))
    attempt("shared memory", lambda: call(29, 1, 4096, 0o1666))
    attempt("x32 socket", lambda: call(0x40000000 + 41, 2, 1, 0))
    attempt("clone3", lambda: call(435, 0, 0))
    """
    )
    lines = run_confined(confinement, code, folder, os.getpid(), caller=caller, fds=(image_fd,))
    assert lines == ["named file", "thread"]


@pytest.mark.needs_root
def test_root_gives_the_tool_a_user_without_capabilities(folder: Path, image_fd: int) -> None:
    def user_of(*, reads: tuple[int, ...]) -> str:
        tool = ForeignTool(("true",), reads=reads)
        code = "print(os.getuid(), os.getgid(), *os.getgroups()); print(open('/proc/self/status').read())"
        confinement = dataclasses.replace(tool.confinement(), reads=("/proc",))
        first, *status = run_confined(confinement, code)
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        return first

    confined, ordinary = f"{CONFINED_USER_ID} {CONFINED_USER_ID}", f"{ORDINARY_USER_ID} {ORDINARY_USER_ID}"
    assert user_of(reads=(image_fd,)) == confined
    (folder / "image").chmod(0o600)
    os.chown(folder / "image", ORDINARY_USER_ID, ORDINARY_USER_ID)
    assert user_of(reads=(image_fd,)) == ordinary
    assert run("cat", f"/proc/self/fd/{image_fd}", reads=(image_fd,)) == "image"


def test_without_landlock_a_tool_runs_only_with_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "landlock_version", lambda: -1)
    with pytest.raises(SandboxUnavailableError, match="--allow-unsandboxed"):
        run("true")
    require_sandbox(allow_unsandboxed=True)


def test_an_unknown_architecture_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "machine_is_supported", lambda: False)
    with pytest.raises(SandboxUnavailableError, match="architecture"):
        require_sandbox(allow_unsandboxed=True)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_is_a_program_that_the_kernel_accepts(machine: str) -> None:
    """A filter of another architecture kills its process at the next call: it was loaded, and it decided."""
    numbers = denied_numbers(machine)
    assert len(set(numbers.values())) == len(numbers)
    program = build_filter(machine)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096, "BPF_MAXINSNS"
    code = (
        "import ctypes, sys; program = bytes.fromhex(sys.argv[1]); libc = ctypes.CDLL(None);"
        "text = ctypes.create_string_buffer(program, len(program));"
        "head = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(text));"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0;"
        "print('loading', flush=True);"
        "print(libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(head), 0, 0), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, program.hex()], capture_output=True, text=True, check=False
    )
    is_native = os.uname().machine == machine
    assert done.stdout == ("loading\n0\n" if is_native else "loading\n")
    assert done.returncode == (0 if is_native else -31), done.stderr
