"""Confined tools: whatever code runs in one, it reaches nothing but its device."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.program.confinement import (
    CONFINED_USER_ID,
    ENVIRONMENT,
    FIRMWARE_TOOL,
    KERNEL_TOOL,
    OPEN_FILES_MAX,
    Confinement,
    device_of,
    memory_bytes_max,
)
from tests.support.disks.devices import loop_device
from tests.support.programs.confined_code import ATTEMPTS, ORDINARY_USER_ID, run_confined

MIB = 1 << 20


def run_shell(confinement: Confinement, script: str) -> str:
    """Run a shell script as a tool, started by the launcher, and return its output."""
    command = confinement.wrap("/bin/sh", ["sh", "-c", script], time_limit_s=60)
    done = subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Provide the tool's device, and another disk of the same machine."""
    for name in ("own", "other"):
        (tmp_path / name).write_bytes(bytes(4 * MIB))
    with loop_device(tmp_path / "own") as own, loop_device(tmp_path / "other") as other:
        yield own, other


def parser(device: Path, *, writable: bool = False) -> Confinement:
    return Confinement((device_of(device, writable=writable),))


@pytest.mark.needs_root
def test_a_parser_has_no_powers_but_its_device(disks: tuple[Path, Path], tmp_path: Path) -> None:
    own, other = disks
    (tmp_path / "file").write_text("before")
    victim = subprocess.Popen(["sleep", "1000"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            lines = run_confined(
                parser(own, writable=True),
                ATTEMPTS
                + """
    own, other, number, pid, port, name = sys.argv[1:]
    attempt("own device", lambda: os.pwrite(os.open(own, os.O_RDWR), b"written", 4096))
    attempt("other disk", lambda: os.open(other, os.O_RDONLY))
    attempt("other disk by a new node", lambda: os.mknod("/dev/x", 0o60600, int(number)))
    attempt("shared folder", lambda: os.open("/tmp/x", os.O_WRONLY | os.O_CREAT))
    attempt("dev shm", lambda: os.open("/dev/shm/x", os.O_WRONLY | os.O_CREAT))
    attempt("system file", lambda: os.chmod("/etc/hostname", 0o666))
    attempt("kernel setting", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    attempt("another process", lambda: os.kill(int(pid), 9))
    attempt("memory of another process", lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    attempt("environment of another process", lambda: open(f"/proc/{pid}/environ").read())
    attempt("network", lambda: socket.socket().connect(("127.0.0.1", int(port))))
    attempt("abstract socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + name))
    attempt("user", lambda: os.setuid(0))
    attempt("root", lambda: os.chroot("/"))
    """,
                own,
                other,
                other.stat().st_rdev,
                victim.pid,
                server.getsockname()[1],
                "nothing-listens-here",
            )
    finally:
        victim.kill()
        victim.wait()
    assert lines == ["own device"]
    assert (tmp_path / "own").read_bytes()[4096:4103] == b"written"
    assert not any((tmp_path / "other").read_bytes())
    assert not Path("/tmp/x").exists()


@pytest.mark.needs_root
def test_a_parser_that_only_reads_cannot_write_its_device(disks: tuple[Path, Path]) -> None:
    code = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); os.open(sys.argv[1], os.O_RDWR)"
    with pytest.raises(AssertionError, match="PermissionError"):
        run_confined(parser(disks[0]), code, disks[0])


@pytest.mark.needs_root
def test_a_parser_is_a_user_without_capabilities_forever(disks: tuple[Path, Path]) -> None:
    lines = run_shell(parser(disks[0]), "cat /proc/self/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(CONFINED_USER_ID)}
    assert not status["Groups"].strip()


@pytest.mark.needs_root
@pytest.mark.parametrize("confinement", [KERNEL_TOOL, FIRMWARE_TOOL])
def test_a_tool_of_the_kernel_has_only_its_own_capabilities(confinement: Confinement) -> None:
    lines = run_shell(confinement, "cat /proc/self/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    kept = sum(1 << bit for bit in confinement.capabilities)
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {kept}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("is_root", [pytest.param(True, marks=pytest.mark.needs_root), False])
def test_every_tool_has_limits_and_dumps_no_core(is_root: bool) -> None:
    confinement = (
        KERNEL_TOOL if is_root else dataclasses.replace(KERNEL_TOOL, private_mounts=True, is_required=False)
    )
    code = """
        import resource as r
        for name in ("CORE", "FSIZE", "DATA", "CPU", "NOFILE"):
            print(*r.getrlimit(getattr(r, "RLIMIT_" + name)))
        """
    core, size, data, cpu, files = (tuple(map(int, line.split())) for line in run_confined(confinement, code))
    assert core == (1, 1), "1 is the only limit that also stops a dump into a pipe"
    assert size == (0, 0)
    assert data == (memory_bytes_max(), memory_bytes_max())
    assert cpu == (60 * (os.cpu_count() or 1),) * 2
    assert files == (OPEN_FILES_MAX, OPEN_FILES_MAX)


def test_a_tool_that_wants_all_memory_fails_alone() -> None:
    code = """
        import mmap
        try:
            mmap.mmap(-1, 1 << 44)
        except (OSError, MemoryError):
            print("refused")
        print(open("/proc/self/oom_score_adj").read())
        """
    assert run_confined(Confinement(is_required=False, user_id=os.geteuid()), code) == ["refused", "1000", ""]


def test_a_tool_inherits_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKCAST_TOKEN", "dct_enrol_secret")
    shown = run_shell(Confinement(is_required=False, user_id=os.geteuid()), "exec env").splitlines()
    assert dict(line.split("=", 1) for line in shown) == ENVIRONMENT | {"PWD": "/"}


def test_without_root_a_tool_can_change_no_file(tmp_path: Path) -> None:
    """Landlock needs no privileges: packing as an ordinary user is confined too."""
    tmp_path.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o711)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o666)
    confinement = Confinement(user_id=None, is_required=False)
    code = (
        ATTEMPTS
        + """
    folder = sys.argv[1]
    attempt("reading", lambda: open(folder + "/file").read())
    attempt("writing", lambda: os.open(folder + "/file", os.O_WRONLY))
    attempt("creating", lambda: os.open(folder + "/new", os.O_WRONLY | os.O_CREAT))
    attempt("removing", lambda: os.unlink(folder + "/file"))
    attempt("linking", lambda: os.symlink("/etc", folder + "/link"))
    attempt("discarding output", lambda: os.open("/dev/null", os.O_WRONLY))
    """
    )
    lines = run_confined(confinement, code, tmp_path, caller=ORDINARY_USER_ID)
    assert lines == ["reading", "discarding output"]


def test_a_tool_that_opens_its_file_for_writing_cannot_change_it(tmp_path: Path) -> None:
    """xfs_logprint only reads, and opens for writing."""
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o711)
    for name in ("own", "other"):
        (tmp_path / name).write_text("before")
        (tmp_path / name).chmod(0o666)
    confinement = Confinement(user_id=None, is_required=False, files=(str(tmp_path / "own"),))
    code = (
        ATTEMPTS
        + """
    folder = sys.argv[1]
    attempt("opening", lambda: os.open(folder + "/own", os.O_RDWR))
    attempt("writing", lambda: os.pwrite(os.open(folder + "/own", os.O_RDWR), b"after", 0))
    attempt("emptying", lambda: os.truncate(folder + "/own", 0))
    attempt("opening another", lambda: os.open(folder + "/other", os.O_RDWR))
    """
    )
    assert run_confined(confinement, code, tmp_path, caller=ORDINARY_USER_ID) == ["opening"]
    assert (tmp_path / "own").read_text() == "before"


def test_a_tool_fills_its_output_and_no_other_file(tmp_path: Path) -> None:
    output, other = tmp_path / "output", tmp_path / "other"
    for path in (output, other):
        path.write_text("old and long")
    code = """
    with open(sys.argv[1], "w") as file:
        file.write("new")
    for mode in ("r+", "w"):
        try:
            open(sys.argv[2], mode)
        except OSError as error:
            print(type(error).__name__)
    """
    with output.open("r+b") as file:
        # In its private mounts everything is read-only; an inherited descriptor leads to the caller's.
        target = f"/proc/self/fd/{file.fileno()}"
        confinement = Confinement(outputs=(target,), user_id=None, file_bytes_max=100)
        lines = run_confined(confinement, code, target, other, fds=(file.fileno(),))
    assert output.read_text() == "new"
    assert other.read_text() == "old and long"
    assert len(lines) == 2


@pytest.mark.parametrize("ignored", [True, False])
def test_a_closed_output_ends_readers_but_not_writers(ignored: bool) -> None:
    confinement = dataclasses.replace(
        Confinement(is_required=False, user_id=os.geteuid()), sigpipe_ignored=ignored
    )
    shown = run_shell(confinement, "grep SigIgn /proc/self/status").split()[1]
    assert bool(int(shown, 16) >> (signal.SIGPIPE - 1) & 1) is ignored


def test_a_program_that_cannot_start_is_named() -> None:
    command = Confinement(is_required=False, user_id=os.geteuid()).wrap(
        "/nowhere/e2fsck", ["e2fsck"], time_limit_s=60
    )
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (125, "e2fsck can't be started: No such file or directory\n")


FIT_CONF = Path(__file__).parents[4] / "deploy/systemd/fit.conf"


@pytest.mark.needs_root
@pytest.mark.parametrize("confinement", [None, KERNEL_TOOL, FIRMWARE_TOOL])
def test_the_capabilities_of_the_hardened_unit_suffice(
    disks: tuple[Path, Path], confinement: Confinement | None
) -> None:
    """Otherwise --grow fails exactly where the agent is installed as documented."""
    (line,) = (
        line for line in FIT_CONF.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")
    )
    names = [name.removeprefix("CAP_").lower() for name in line.partition("=")[2].split()]
    bounding = ",".join(["-all", *(f"+{name}" for name in names), "+net_admin"])
    tool = confinement or parser(disks[0])
    command = tool.wrap("/bin/sh", ["sh", "-c", "grep CapEff /proc/self/status"], time_limit_s=60)
    limited = ["setpriv", "--bounding-set", bounding, "--inh-caps=-all", "--no-new-privs", *command]
    done = subprocess.run(limited, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held = sum(1 << bit for bit in tool.capabilities if bit.name.lower() in names)
    assert int(done.stdout.split()[1], 16) == held
