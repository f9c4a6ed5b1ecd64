"""Launcher of confined tools: it gives up its privileges, then becomes the tool.

A script for ``python -I -S confined_exec.py SETTING=VALUE… -- PROGRAM NAME ARGUMENT…``, which
:mod:`protocol.program.confinement` builds. Privileges are given up here, in a process without threads, and not between
fork and exec of a program with threads, where Python code may deadlock. Only modules that load fast are imported: each
tool costs one more start of Python.

The order matters: namespaces need CAP_SYS_ADMIN, device nodes CAP_MKNOD and CAP_CHOWN, the user CAP_SETUID, and nothing
can be regained after the last step.
"""

from __future__ import annotations

import _socket
import contextlib
import ctypes
import errno
import os
import resource
import signal
import stat
import sys
from typing import Final, NoReturn

FAILURE_CODE: Final = 125
"""Exit code if the tool wasn't started, as of env(1) and timeout(1)."""

# linux/sched.h, sys/mount.h, linux/mount.h, linux/fcntl.h, linux/prctl.h
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID: Final = 2
_MS_NOEXEC: Final = 8
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_NEW_LISTENER: Final = 8
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES_MAX: Final = 64
# The same numbers on all architectures but alpha (Linux 5.12 and 5.13).
_SYS_MOUNT_SETATTR: Final = 442
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_SYS_LANDLOCK_ADD_RULE: Final = 445
_SYS_LANDLOCK_RESTRICT_SELF: Final = 446

_LANDLOCK_VERSION_FLAG: Final = 1
_LANDLOCK_PATH_BENEATH: Final = 1
_LANDLOCK_EXECUTE: Final = 1 << 0
_LANDLOCK_WRITE_FILE: Final = 1 << 1
_LANDLOCK_READ_FILE: Final = 1 << 2
_LANDLOCK_READ_DIR: Final = 1 << 3
_LANDLOCK_CHANGES: Final = _LANDLOCK_WRITE_FILE | sum(1 << bit for bit in range(4, 13))
"""Writing, creating and removing files of every kind; reading and executing stay as the file modes allow."""
_LANDLOCK_TRUNCATE: Final = 1 << 14
_LANDLOCK_BY_VERSION: Final = ((2, 1 << 13), (3, _LANDLOCK_TRUNCATE))
"""Moving to another directory, truncating."""
_LANDLOCK_IOCTL_BY_VERSION: Final = (5, 1 << 15)
"""Control of devices: for tools that read no device at all."""
_LANDLOCK_NET_VERSION: Final = 4
_LANDLOCK_SCOPE_VERSION: Final = 6

_CORE_BYTES: Final = 1
"""Too small for a core file, and the one limit that also stops a core dump into a pipe (fs/coredump.c): the dump of a
tool would hold parts of the image."""
_HIDDEN: Final = ("/run", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  hidden from the tool, never used
"""Places of sockets and shared files: a read-only mount doesn't stop connecting to a socket."""
_LIBRARIES: Final = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
"""Files that every program reads before it does its work; they are the same on every installation."""
_ELF_INTERPRETER: Final = 3
_ELF_HEADERS_MAX: Final = 64
"""Program headers of an ELF file; it has about 13."""
_NULL: Final = os.makedev(1, 3)
_URANDOM: Final = os.makedev(1, 9)

_libc = ctypes.CDLL(None, use_errno=True)


class _Settings:
    """The parsed command line."""

    def __init__(self, arguments: list[str]) -> None:
        split = arguments.index("--")
        self.program, *self.argv = arguments[split + 1 :]
        self.values: dict[str, str] = {}
        self.devices: list[tuple[str, int, bool]] = []
        self.files: list[str] = []
        self.outputs: list[str] = []
        self.reads: list[str] = []
        for argument in arguments[:split]:
            name, _, value = argument.partition("=")
            if name == "file":
                self.files.append(value)
            elif name == "output":
                self.outputs.append(value)
            elif name == "read":
                self.reads.append(value)
            elif name == "device":
                path, number, access = value.rsplit(":", 2)
                self.devices.append((path, int(number), access == "rw"))
            else:
                self.values[name] = value
        self.reads_are_named = self.values.get("reads") == "named"
        self.is_required = self.values.get("required") == "1"
        self.has_private_mounts = self.values.get("mounts") == "private"
        self.user_id = int(self.values["user"]) if "user" in self.values else None
        self.kept_capabilities = {int(bit) for bit in self.values.get("keep", "").split(",") if bit}


def _call(name: str, result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _limit(values: dict[str, str]) -> None:
    """Set limits that a hostile filesystem can't make the tool exceed."""
    limits = {
        resource.RLIMIT_CORE: _CORE_BYTES,
        resource.RLIMIT_DATA: int(values["memory"]),
        resource.RLIMIT_CPU: int(values["cpu"]),
        resource.RLIMIT_NOFILE: int(values["files"]),
    }
    if "processes" in values:
        limits[resource.RLIMIT_NPROC] = int(values["processes"])
    if "written" in values:
        limits[resource.RLIMIT_FSIZE] = int(values["written"])
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
    # If memory runs out, the kernel ends the tool and not the agent, which also holds the disk.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


def _mount_tmpfs(path: str, mode: str) -> None:
    _call(
        f"mounting over {path}",
        _libc.mount(
            b"tmpfs", path.encode(), b"tmpfs", _MS_NOSUID | _MS_NOEXEC, f"size=64k,mode={mode}".encode()
        ),
    )


def _inherited_files() -> dict[str, os.stat_result]:
    """Return the inherited files, beside the standard streams, by path."""
    files = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        path = f"/proc/self/fd/{name}"
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            if int(name) > sys.stderr.fileno():
                files[os.path.realpath(path)] = os.stat(path)  # noqa: PTH116
    return files


def _make_mounts_private(settings: _Settings) -> None:
    """Make everything read-only in a mount namespace of the tool, and give it a ``/dev`` with its devices only."""
    _call("private mounts", _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), b"/", ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)),
    )  # fmt: skip
    if ctypes.get_errno() != errno.ENOSYS:  # before Linux 5.12 the user alone keeps the tool from writing
        _call("read-only mounts", result)
    # A tool resolves the name of its source, although it opens the inherited descriptor.
    inherited = _inherited_files()
    seen = [os.path.realpath(settings.program), *inherited]
    for path in _HIDDEN:
        inside = os.path.realpath(path) + "/"
        if os.path.isdir(path) and not any(name.startswith(inside) for name in seen):  # noqa: PTH112
            _mount_tmpfs(path, "755")
    _mount_tmpfs("/dev", "755")
    nodes = [("/dev/null", _NULL, 0o666, stat.S_IFCHR), ("/dev/urandom", _URANDOM, 0o444, stat.S_IFCHR)]
    nodes += [
        (path, number, 0o600 if writable else 0o400, stat.S_IFBLK)
        for path, number, writable in settings.devices
    ]
    nodes += [
        (path, status.st_rdev, 0o400, stat.S_IFBLK)
        for path, status in inherited.items()
        if stat.S_ISBLK(status.st_mode) and path.startswith("/dev/")
    ]
    for path, number, mode, kind in nodes:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)  # noqa: PTH103, PTH120
        os.mknod(path, kind | mode, number)
        os.chmod(path, mode)  # noqa: PTH101  whatever the umask
        if kind == stat.S_IFBLK and settings.user_id is not None:
            os.chown(path, settings.user_id, settings.user_id)


def _drop_user(settings: _Settings) -> None:
    for bit in set(range(_CAPABILITIES_MAX)) - settings.kept_capabilities:
        _libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)  # fails for those that this kernel doesn't have
    if settings.user_id is None:
        return
    try:
        os.setgroups([])
        os.setresgid(settings.user_id, settings.user_id, settings.user_id)
        os.setresuid(settings.user_id, settings.user_id, settings.user_id)
    except PermissionError:
        if settings.is_required:
            raise


def _drop_capabilities(settings: _Settings) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the low words, then the high ones
    _call("reading capabilities", _libc.capget(ctypes.byref(header), ctypes.byref(data)))
    mask = sum(1 << bit for bit in settings.kept_capabilities) & (data[1] | data[4] << 32)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data[:] = [low, low, 0, high, high, 0]
    _call("dropping capabilities", _libc.capset(ctypes.byref(header), ctypes.byref(data)))


def landlock_version() -> int:
    """Return the version of Landlock in this kernel; below 1 if it has none or doesn't use it."""
    version: int = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint(_LANDLOCK_VERSION_FLAG),
    )
    return version


def _restrict_files(settings: _Settings) -> None:
    """Restrict files by Landlock, where the kernel has it; it needs no privilege.

    Only the tool's devices and files can be changed, and if reads are named, only those files, libraries and the
    program itself can be read.
    """
    version = landlock_version()
    if version < 1:
        if settings.values.get("landlock") == "required":
            raise OSError(errno.ENOSYS, "this kernel has no Landlock")
        return
    handled = _LANDLOCK_CHANGES | sum(bit for since, bit in _LANDLOCK_BY_VERSION if version >= since)
    if settings.reads_are_named:
        handled |= _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
        since, bit = _LANDLOCK_IOCTL_BY_VERSION
        handled |= bit if version >= since else 0
    values = [handled]
    if version >= _LANDLOCK_NET_VERSION:
        values.append(3)  # no TCP socket is bound or connected
    if version >= _LANDLOCK_SCOPE_VERSION:
        values.append(3)  # no abstract socket and no process of others is reached
    attributes = (ctypes.c_uint64 * len(values))(*values)
    ruleset_fd = _libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET), ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)), ctypes.c_uint(0),
    )  # fmt: skip
    _call("creating Landlock rules", ruleset_fd)
    devices = [path for path, _, writable in settings.devices if writable]
    fill = _LANDLOCK_WRITE_FILE | _LANDLOCK_TRUNCATE
    rules = [(path, _LANDLOCK_WRITE_FILE) for path in ("/dev/null", *devices, *settings.files)]
    rules += [(path, fill) for path in settings.outputs]
    if settings.reads_are_named:
        read = _LANDLOCK_READ_FILE
        named = (*settings.reads, *settings.files, *settings.outputs, "/dev/null", "/dev/urandom")
        rules += [(path, read) for path in (*named, *filter(os.path.exists, _LIBRARIES))]
        rules += [(path, read | _LANDLOCK_EXECUTE) for path in _executed_files(settings.program)]
    for path, access in rules:
        path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = (access & handled).to_bytes(8, sys.byteorder) + path_fd.to_bytes(4, sys.byteorder)
        result = _libc.syscall(
            ctypes.c_long(_SYS_LANDLOCK_ADD_RULE), ctypes.c_int(ruleset_fd), ctypes.c_int(_LANDLOCK_PATH_BENEATH),
            rule, ctypes.c_uint(0),
        )  # fmt: skip
        _call("adding a Landlock rule", result)
        os.close(path_fd)
    _call(
        "Landlock",
        _libc.syscall(ctypes.c_long(_SYS_LANDLOCK_RESTRICT_SELF), ctypes.c_int(ruleset_fd), ctypes.c_uint(0)),
    )
    os.close(ruleset_fd)


def _executed_files(program: str) -> list[str]:
    """Return the files that the kernel executes to start ``program``: itself and the loader in its ELF header."""
    with open(program, "rb") as file:  # noqa: PTH123
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return [program]
        table_offset = int.from_bytes(head[32:40], sys.byteorder)
        entry_bytes, entry_count = (int.from_bytes(head[at : at + 2], sys.byteorder) for at in (54, 56))
        for index in range(min(entry_count, _ELF_HEADERS_MAX)):
            file.seek(table_offset + index * entry_bytes)
            entry = file.read(entry_bytes)
            if int.from_bytes(entry[:4], sys.byteorder) == _ELF_INTERPRETER:
                file.seek(int.from_bytes(entry[8:16], sys.byteorder))
                name = file.read(int.from_bytes(entry[32:40], sys.byteorder))
                return [program, name.rstrip(b"\0").decode()]
    return [program]


def _filter_system_calls(program: bytes) -> None:
    """Apply a filter of :mod:`protocol.program.system_call_filter`."""
    instructions = ctypes.create_string_buffer(program, len(program))
    head = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    _call(
        "filtering system calls",
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(head), 0, 0),
    )


def _pass_listener(program: bytes, channel_fd: int) -> None:
    """Stop this process at accesses to files, and pass the listener for them to the supervisor.

    A filter of :func:`protocol.program.system_call_filter.build_watch_filter`; from here on, reads and writes wait for
    the supervisor.
    """
    channel = _socket.socket(fileno=channel_fd)
    instructions = ctypes.create_string_buffer(program, len(program))
    head = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    number = _SYS_SECCOMP[os.uname().machine]
    listener_fd = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_NEW_LISTENER),
        ctypes.byref(head),
    )
    _call("watching files", listener_fd)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener_fd.to_bytes(4, sys.byteorder))
    channel.sendmsg([b"\0"], [rights])
    os.close(listener_fd)
    channel.close()


def _confine(settings: _Settings) -> None:
    _limit(settings.values)
    if os.geteuid() == 0:
        if settings.has_private_mounts:
            result = _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC)
            if result == 0:
                _make_mounts_private(settings)
            elif settings.is_required:
                _call("private namespaces", result)
        _drop_user(settings)
    _drop_capabilities(settings)
    _call("no new privileges", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if settings.has_private_mounts:
        _restrict_files(settings)
    if "filter" in settings.values:
        _filter_system_calls(bytes.fromhex(settings.values["filter"]))
    if "watch" in settings.values:
        _pass_listener(bytes.fromhex(settings.values["watch"]), int(settings.values["channel"]))


def main(arguments: list[str]) -> NoReturn:
    """Confine this process, and become the program."""
    settings = _Settings(arguments)
    name = settings.argv[0]
    if settings.values.get("sigpipe") != "ignored":  # Python ignores it, and the tool would inherit that
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        _confine(settings)
    except OSError as error:
        print(f"{name} can't be confined: {error.strerror}", file=sys.stderr)
        sys.exit(FAILURE_CODE)
    try:
        os.execv(settings.program, settings.argv)  # noqa: S606  a shell would interpret arguments
    except OSError as error:
        print(f"{name} can't be started: {error.strerror}", file=sys.stderr)
        sys.exit(FAILURE_CODE)


if __name__ == "__main__":
    main(sys.argv[1:])
