"""Trying out what the daemon needs: its configuration, its folders, its database, its ports, the system's limits.

Nothing is changed, and a daemon that runs meanwhile isn't disturbed. What the network needs is
``sender.doctor.sender_doctor``'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pwd
import resource
import shutil
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from protocol.constants import GIB, MIB
from protocol.errors import ConfigurationError
from protocol.program.findings import Finding, fail, ok, warn
from protocol.shared.units import format_bytes
from sender.addresses import parse_group
from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig
from sender.serve.descriptor_limit import DESCRIPTORS_NEEDED

SERVER_MODULES = (
    "aiohttp",
    "alembic",
    "cronsim",
    "fsspec",
    "httpx",
    "pydantic",
    "s3fs",
    "sqlalchemy",
    "structlog",
)
"""What the daemon needs beyond what ``diskcast send`` has."""

STATE_FREE_BYTES_MIN = 64 * MIB
"""A cast's history is kilobytes; below this the database's own log hardly fits."""
STATE_FREE_BYTES_WANTED = GIB
MEMORY_BYTES_WANTED = 900 * MIB
"""500 MB for the daemon and 400 MB for one cast, at most; a usual cast takes half of that."""
HEALTH_TIMEOUT_S = 3.0
"""A daemon on this machine that doesn't say how it is within this time isn't well."""
SYSTEMCTL_TIMEOUT_S = 5.0
UNIT = "diskcast.service"

_TIMEX_BYTES = 512
"""More than the kernel's struct timex on any machine."""
_TIME_ERROR = 5
_OTHERS = stat.S_IRWXO
_UNLIMITED = 1 << 62
_CGROUPS = Path("/sys/fs/cgroup")


def examine_server(config_path: Path | None, interface: str | None = None) -> list[Finding]:
    """Try everything that the daemon of this configuration needs; takes seconds and changes nothing.

    Args:
        config_path: as for ``diskcast serve --config``.
        interface: instead of the configured one.
    """
    from sender.doctor.database_doctor import examine_database

    found = [_modules()]
    try:
        config = load_config(config_path, {"network.interface": interface})
    except ConfigurationError as error:
        mend = "correct it as it says; docs/reference/configuration.md has every key"
        return [*found, fail("configuration", str(error), mend)]
    found.append(ok("configuration", str(config_path) if config_path else "no file: defaults"))
    found += judge_permissions(config, config_path)
    found += judge_state_directory(config.server.state_directory)
    found += examine_database(config)
    found += judge_library(config)
    running = _daemon_answers(config)
    found += judge_ports(config, running)
    found += _network(config)
    found.append(judge_clock(clock_is_synchronised()))
    found += judge_limits()
    return found


def _modules() -> Finding:
    missing = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        detail = f"the daemon needs what isn't installed: {', '.join(missing)}"
        return fail("daemon", detail, "pip install 'diskcast[server]'")
    return ok("daemon", "everything it needs is installed")


# -- files -----------------------------------------------------------------------------------------------------


def judge_permissions(config: ServerConfig, config_path: Path | None) -> list[Finding]:
    """Who can read what is secret, and whether what is found here is true for the daemon's user."""
    found = []
    secret = config.server.database_password_file
    if secret is not None:
        found.append(_private("database password", secret))
    elif config_path is not None and config.server.database_shown != config.server.database:
        found.append(_private("configuration file", config_path, why="it has the database's password"))
    state = config.server.state_directory
    if os.access(state, os.R_OK | os.X_OK):
        found += [_private(f"token file {path.name}", path) for path in sorted(state.glob("*token*"))]
    if os.geteuid() == 0 and (name := _service_user()) is not None:
        detail = f"this is root, who may read and write everything; the daemon's user {name} may not"
        found.append(warn("user", detail, f"runuser -u {name} -- diskcast doctor --server"))
    return found


def _private(check: str, path: Path, why: str = "") -> Finding:
    """Whether only its owner, and a group at most, can read a secret."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return fail(check, f"{path}: {error.strerror}", f"ls -l {path}")
    if mode & _OTHERS:
        reason = f": {why}" if why else ""
        return fail(check, f"every user of this machine can read {path}{reason}", f"chmod o-rwx {path}")
    return ok(check, f"{path} is closed to other users")


def _service_user() -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("diskcast").pw_name
    return None


def judge_state_directory(state: Path) -> list[Finding]:
    """Whether the daemon can keep what it must not forget."""
    check = "state directory"
    parent = _existing_parent(state)
    if not os.access(parent, os.W_OK | os.X_OK):
        mend = f"install -d -m 750 -o {_user()} {state}, or another server.state_directory"
        return [fail(check, f"{_user()} may not write to {parent}", mend)]
    if not parent.is_dir():
        return [fail(check, f"{parent} isn't a folder", "choose another server.state_directory")]
    made = "" if state.exists() else ", made at the first start"
    found = [ok(check, f"{state}, writable{made}")]
    if state.exists() and state.stat().st_mode & stat.S_IWOTH:
        detail = f"every user of this machine may replace the database in {state}"
        found.append(fail("state directory's permissions", detail, f"chmod 750 {state}"))
    free_bytes = shutil.disk_usage(parent).free
    detail = f"{format_bytes(free_bytes)} free for database and history"
    mend = f"free space on the filesystem of {parent}: df -h {parent}"
    if free_bytes < STATE_FREE_BYTES_MIN:
        found.append(fail("space for the state", detail, mend))
    elif free_bytes < STATE_FREE_BYTES_WANTED:
        found.append(warn("space for the state", detail, mend))
    else:
        found.append(ok("space for the state", detail))
    return found


def judge_library(config: ServerConfig) -> list[Finding]:
    """Whether images can be read, and fetched ones kept."""
    found = [
        _folder(folder, made_by_daemon=folder == config.server.state_directory / "images")
        for folder in config.library.folders
    ]
    if config.library.remotes:
        found.append(_cache(config.library.cache_directory, config.library.cache_bytes))
    return found


def _folder(folder: Path, *, made_by_daemon: bool) -> Finding:
    check = f"images in {folder}"
    try:
        names = [entry.path for entry in os.scandir(folder) if entry.name.endswith(".dci")]
    except FileNotFoundError:
        if made_by_daemon:
            return ok(check, "made at the first start")
        return fail(check, "there is no such folder", f"mkdir -p {folder}, or mend library.folders")
    except OSError as error:
        return fail(check, f"it can't be read: {error.strerror}", f"let {_user()} read it: ls -ld {folder}")
    closed = [name for name in names if not os.access(name, os.R_OK)]
    if closed:
        detail = f"{len(closed)} of {len(names)} images can't be read, for example {Path(closed[0]).name}"
        return fail(check, detail, f"let {_user()} read them: chmod a+r {closed[0]}")
    if not names:
        return warn(check, "no image yet", f"diskcast pack SOURCE -o {folder}/NAME.dci")
    return ok(check, f"{len(names)} image{'' if len(names) == 1 else 's'}")


def _cache(cache: Path, limit_bytes: int) -> Finding:
    check = "space for fetched images"
    parent = _existing_parent(cache)
    if not os.access(parent, os.W_OK | os.X_OK):
        mend = f"install -d -m 750 -o {_user()} {cache}, or another library.cache_directory"
        return fail(check, f"{_user()} may not write to {parent}", mend)
    kept_bytes = (
        sum(entry.stat().st_size for entry in os.scandir(cache) if entry.is_file()) if cache.is_dir() else 0
    )
    room_bytes = shutil.disk_usage(parent).free + kept_bytes
    detail = f"{format_bytes(room_bytes)} on its disk, of which library.cache_size allows {format_bytes(limit_bytes)}"
    if room_bytes < limit_bytes:
        return warn(check, detail, "a smaller library.cache_size, or another disk: library.cache_directory")
    return ok(check, detail)


def _existing_parent(path: Path) -> Path:
    """``path``, or the nearest folder above it that there is."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.geteuid())


# -- ports and network -----------------------------------------------------------------------------------------


def _daemon_answers(config: ServerConfig) -> bool:
    """Whether a diskcast daemon answers where this one would listen."""
    address, port = config.server.endpoint
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  it's compared, not bound
    url = f"http://[{host}]:{port}/healthz" if ":" in host else f"http://{host}:{port}/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=HEALTH_TIMEOUT_S) as answer:
            body = json.loads(answer.read(4096))
    except (OSError, ValueError):  # nobody, somebody else, or no JSON
        return False
    return isinstance(body, dict) and {"status", "database"} <= body.keys()


def judge_ports(config: ServerConfig, running: bool) -> list[Finding]:
    """Whether the daemon's ports are free, or its own.

    Args:
        config: which ports they are.
        running: a daemon answers already.
    """
    address, port = config.server.endpoint
    check = f"port {config.server.listen}"
    if running:
        found = [ok(check, "a diskcast daemon listens there")]
    elif (problem := _tcp_problem(address, port)) is not None:
        found = [fail(check, problem, f"ss -ltnp 'sport = :{port}', or another server.listen")]
    else:
        reach = "only from this machine" if config.server.loopback else "from other machines, with tokens"
        found = [ok(check, f"free; the daemon will be reachable {reach}")]
    ports = config.network.control_port_range
    held = [port for port in ports if _tcp_problem("0.0.0.0", port) or _udp_held(port)]  # noqa: S104
    check = f"ports {config.network.control_ports} of casts"
    if not held:
        found.append(ok(check, f"free: {len(ports)} casts can run at once"))
    elif running:
        found.append(ok(check, f"{len(held)} of {len(ports)} are in use, by running casts"))
    else:
        detail = f"held by another program: {', '.join(map(str, held))}"
        judge = fail if len(held) == len(ports) else warn
        found.append(
            judge(check, detail, f"ss -lptun 'sport = :{held[0]}', or another network.control_ports")
        )
    return found


def _tcp_problem(address: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the daemon does: a closed connection lingers
        try:
            sock.bind((address, port))
            sock.listen(1)
        except OSError as error:
            return f"can't listen on {address} port {port}: {os.strerror(error.errno or 0)}"
    return None


def _udp_held(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return True
    return False


def _network(config: ServerConfig) -> list[Finding]:
    """What ``diskcast doctor`` finds, with the daemon's groups and the first of its ports that is free."""
    from sender.doctor.sender_doctor import examine

    network = config.network
    ports = network.control_port_range
    free = next((port for port in ports if not _tcp_problem("0.0.0.0", port) and not _udp_held(port)), 0)  # noqa: S104
    group = parse_group(network.group_base)
    return examine(network.interface, group=group, port=network.data_port, control=(None, free))


# -- system ----------------------------------------------------------------------------------------------------


def clock_is_synchronised() -> bool | None:
    """Whether the kernel says that something keeps its clock right, adjtimex(2); None if it doesn't say."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state: int = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # modes = 0: only ask
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def judge_clock(synchronised: bool | None) -> Finding:
    """Whether schedules start on time and history tells the right one."""
    if synchronised is False:
        detail = "nothing keeps this machine's clock right: schedules and history follow it"
        return warn("clock", detail, "timedatectl set-ntp true, or install chrony")
    return ok("clock", "kept right" if synchronised else "the kernel doesn't say whether it is kept right")


def judge_limits() -> list[Finding]:
    """What the system lets the daemon have: of its unit if there is one, else of whoever asks."""
    unit = unit_limits()
    if unit is not None:
        descriptors, memory_bytes = unit.get("LimitNOFILE", _UNLIMITED), unit.get("MemoryMax", _UNLIMITED)
        where, mend = UNIT, f"systemctl edit {UNIT}"
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = (
            _UNLIMITED if resource.RLIM_INFINITY in (soft, hard) else hard
        )  # the daemon raises the soft one
        memory_bytes = cgroup_memory_bytes()
        where, mend = "this shell", "run it with more"
    found = []
    check = "open files"
    if descriptors < DESCRIPTORS_NEEDED:
        detail = f"{where} may have {descriptors} open, a large room needs {DESCRIPTORS_NEEDED}"
        found.append(warn(check, detail, f"{mend}: LimitNOFILE=65536, or ulimit -Hn 65536"))
    else:
        found.append(
            ok(check, f"{where} may have {'any number' if descriptors >= _UNLIMITED else descriptors} open")
        )
    check = "memory limit"
    if memory_bytes < MEMORY_BYTES_WANTED:
        detail = f"{where} may use {format_bytes(memory_bytes)}, a cast with its daemon up to "
        detail += format_bytes(MEMORY_BYTES_WANTED)
        found.append(warn(check, detail, f"{mend}: MemoryMax=1G or more"))
    else:
        limit = "no limit" if memory_bytes >= _UNLIMITED else format_bytes(memory_bytes)
        found.append(ok(check, f"{where}: {limit}"))
    return found


def unit_limits() -> dict[str, int] | None:
    """Limits of the daemon's unit as systemd knows them; None without systemd or without the unit."""
    if not Path("/run/systemd/system").exists() or (systemctl := shutil.which("systemctl")) is None:
        return None
    names = "LoadState,LimitNOFILE,MemoryMax"
    try:
        shown = subprocess.run(
            [systemctl, "show", UNIT, f"--property={names}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_unit_limits(shown.splitlines())


def parse_unit_limits(lines: Iterable[str]) -> dict[str, int] | None:
    """What ``systemctl show`` printed: numbers by name; None if the unit isn't installed."""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    if values.get("LoadState") != "loaded":
        return None
    return {
        name: int(text) if text.isdecimal() else _UNLIMITED
        for name, text in values.items()
        if name != "LoadState"
    }


def cgroup_memory_bytes() -> int:
    """The tightest memory limit above this process, as in a container."""
    limit = _UNLIMITED
    with contextlib.suppress(OSError):
        line = next(
            line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        )
        folder = _CGROUPS / line.removeprefix("0::").lstrip("/")
        while True:
            with contextlib.suppress(OSError, ValueError):
                limit = min(limit, int((folder / "memory.max").read_text()))
            if folder == _CGROUPS or _CGROUPS not in folder.parents:
                break
            folder = folder.parent
    return limit
