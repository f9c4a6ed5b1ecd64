"""Install and run deploy/ under systemd on a Debian in a container: ``python -m tests.deploy.booted``.

systemd-nspawn boots a minimal Debian without a network, and the test types the commands of ``deploy/README.md`` and
``docs/how-to/upgrade-and-backup.md`` into its shell. Casts to a loop device then go through the events of a deployment:
a stop during the cast, a hang that the watchdog ends, an upgrade, a restored database, a machine that reboots into its
image. Everything is removed afterwards. Needs root, mmdebstrap, systemd-container, and about ten minutes, less with
``--base`` and ``--wheels``; the first failure ends the run with exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from tests.bench.terminal import run_command
from tests.support.disks.devices import loop_device
from tests.support.network.lab import LIMIT_S, LabError, run, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = ROOT / "deploy" / "README.md"
UPGRADE: Final = ROOT / "docs" / "how-to" / "upgrade-and-backup.md"
PROGRAMS: Final = ("losetup", "mmdebstrap", "nsenter", "systemd-nspawn")
PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,libpam-systemd,python3,python3-venv,iproute2,fdisk,gdisk,e2fsprogs,jq"
)
DISK_BYTES: Final = 1 << 30
RATE: Final = "20M"
"""Bits per second: slow enough for the actions during a cast, and for its name to appear in the status."""
IMAGE_MIB: Final = 96
ARRIVED_BYTES: Final = 8 << 20
REBOOT_EXIT: Final = 133
"""Exit code of systemd-nspawn --keep-unit for a machine that reboots."""
_PROPAGATED: Final = Path("/run/systemd/nspawn/propagate")
_NAMESPACES: Final = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
FULL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """A booted Debian with a shell; it exits itself or is stopped."""

    def __init__(self, root: Path, devices: list[Path]) -> None:
        self.root = root
        self._binds = [f"--bind={device}" for device in devices]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._name = f"diskcast-{os.getpid()}"

    def boot(self) -> None:
        """Wait until everything that starts at boot has started."""
        command = [
            "systemd-nspawn", "--boot", f"--directory={self.root}", f"--machine={self._name}", "--private-network",
            # The container's systemd restricts devices of units with bpf: DeviceAllow=.
            "--capability=CAP_BPF,CAP_NET_ADMIN", "--system-call-filter=bpf",
            "--register=no", "--keep-unit", "--console=pipe", *self._binds,
        ]  # fmt: skip
        environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._nspawn = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._leader = wait_until("init runs", self._find_leader)
        wait_until("everything has started", lambda: self._state() in ("running", "degraded"))

    def _state(self) -> str:
        return self._shell("systemctl is-system-running").stdout.strip()

    def _find_leader(self) -> int:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise LabError(f"systemd-nspawn ended with {self._nspawn.returncode}")
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            # Until it executes init, the process is a copy of systemd-nspawn.
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0

    def _shell(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--target={self._leader}", *_NAMESPACES]
        command += ["env", "-i", f"PATH={FULL_PATH}", "HOME=/root", "LANG=C.UTF-8", "bash", "-c", script]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )

    def type(self, script: str) -> str:
        """Return the output of a root shell.

        Raises:
            LabError: the exit code isn't 0.
        """
        done = self._shell(script)
        if done.returncode:
            raise LabError(f"`{script}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def refuses(self, script: str) -> str:
        """Return the output of a command that must fail."""
        done = self._shell(script)
        if not done.returncode:
            raise LabError(f"`{script}` should have been refused:\n{done.stdout}")
        return done.stderr

    def until(self, script: str) -> None:
        """Wait until ``script`` succeeds."""
        wait_until(
            f"`{script}` ends well", lambda: self._shell(script).returncode == 0, describe=self._journal
        )

    def _journal(self) -> str:
        return self._shell("journalctl -b -o short-precise -u 'diskcast*' -n 60").stdout

    def ended(self) -> int:
        """Wait for the machine to exit; return systemd-nspawn's exit code."""
        assert self._nspawn is not None
        return self._nspawn.wait(LIMIT_S)

    def kill(self) -> None:
        """Cut the power of the machine."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._find_leader() or self._nspawn.pid, signal.SIGKILL)
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        # systemd-nspawn removes this only where /run is a tmpfs.
        shutil.rmtree(_PROPAGATED / self._name, ignore_errors=True)


# -- installation -------------------------------------------------------------------------------------------------


def make_root(folder: Path, base: Path | None, wheels: Path | None) -> Path:
    """Make a Debian with this source tree and the locked packages; diskcast isn't installed yet."""
    root = folder / "machine"
    if base is None:
        run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root, timeout_s=1800)
    else:
        root.mkdir()
        run("tar", "--extract", "--file", base, "--directory", root)
    (root / "etc/hostname").write_text("caster\n")
    (root / "etc/machine-id").write_text("")
    target = root / "root/wheels"
    if wheels is None:
        options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement")
        lock = ROOT / "requirements.lock"
        run(sys.executable, "-m", "pip", "download", "--dest", target, *options, lock, timeout_s=1800)
    else:
        run("cp", "--recursive", wheels, target)
    source = root / "root/source"
    source.mkdir()
    parts = ("deploy", "protocol", "receiver", "sender", "pyproject.toml", "README.md", "LICENSE")
    files = run("git", "-C", ROOT, "ls-files", *parts).splitlines()
    run("tar", "--create", "--directory", ROOT, "--file", folder / "source.tar", *files)
    run("tar", "--extract", "--directory", source, "--file", folder / "source.tar")
    return root


def typed(page: Path, heading: str) -> str:
    """Return root's commands in the first console block below a heading, adapted to a machine without a network."""
    text = page.read_text().partition(f"\n## {heading}\n")[2]
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL)
    assert block is not None, heading
    lines = [line.strip()[2:] for line in block[1].splitlines() if line.strip().startswith("# ")]
    assert lines, heading
    offline = "pip install --quiet --no-index --find-links /root/wheels"
    return "set -ex; cd /root/source\n" + "\n".join(lines).replace("pip install", offline)


# -- checks -----------------------------------------------------------------------------------------


def install(machine: Machine) -> None:
    """Install as in the README; check that the daemon runs, is enabled, and uses the documented paths."""
    machine.type(typed(README, "The daemon"))
    machine.type(typed(README, "Single casts and agents"))
    machine.type("systemctl is-active diskcast && systemctl is-enabled diskcast diskcast-agent")
    machine.type("test -f /var/lib/diskcast/diskcast.db && test ! -e /var/lib/diskcast/.local")
    set_option(machine, "diskcast.toml", '#interface = ".*"', 'interface = "lo"')
    set_option(machine, "diskcast.toml", '#rate_ceiling = ".*"', f'rate_ceiling = "{RATE}"')
    machine.type("systemctl restart diskcast")
    machine.type("runuser -u diskcast -- diskcast doctor --server --config /etc/diskcast/diskcast.toml")
    make = f"head -c {IMAGE_MIB}M /dev/urandom > /root/disk.raw; printf 'label: gpt\\nsize=64M, type=L\\n' | sfdisk -q "
    make += "/root/disk.raw; mkfs.ext4 -q -F -E offset=1048576 /root/disk.raw 48M"
    machine.type(f"{make}; diskcast pack /root/disk.raw -o /var/lib/diskcast/images/lab.dci --name lab")
    machine.until("diskcast images list | grep -q 'lab .* available'")


def set_option(machine: Machine, name: str, pattern: str, line: str) -> None:
    """Change a line, which must exist, of a file in /etc/diskcast."""
    path = machine.root / "etc/diskcast" / name
    text, count = re.subn(rf"^{pattern}$", line.replace("\\", r"\\"), path.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise LabError(f"{name} has {count} lines {pattern}")
    path.write_text(text)


def start_agent(machine: Machine, disk: Path, options: str) -> None:
    """Start the agent's unit with these options; it waits for casts."""
    if not (machine.root / "root/agents.token").exists():
        machine.type("diskcast tokens create lab-agents --role enrol --output /root/agents.token")
        token = (machine.root / "root/agents.token").read_text().strip()
        key = (machine.root / "root/.config/diskcast/signing.pub").read_text().splitlines()[1]  # pack made it
        values = {"TARGET": str(disk), "INTERFACE": "lo", "SERVER": "http://127.0.0.1:7400", "TOKEN": token}
        values["TRUST_KEYS"] = key
        for name, value in values.items():
            set_option(machine, "agent.env", f"DISKCAST_{name}=.*", f"DISKCAST_{name}={value}")
    options = f"--identity SN1 --name pc01 {options}".strip()
    set_option(machine, "agent.env", "DISKCAST_AGENT_OPTIONS=.*", f"DISKCAST_AGENT_OPTIONS={options}")
    machine.type("systemctl restart diskcast-agent")
    machine.until("diskcast machines list --json | grep -q pc01 && systemctl is-active diskcast-agent")


def empty(disk: Path) -> str:
    """Return the command that overwrites the image."""
    return f"dd if=/dev/zero of={disk} bs=1M count={IMAGE_MIB} conv=fsync status=none"


def same(disk: Path) -> str:
    """Return the command that compares all but the partition table, whose copy moved to the end of the disk."""
    return f"cmp --bytes={IMAGE_MIB - 2}M --ignore-initial=1M /root/disk.raw {disk}"


def log_of(unit: str) -> str:
    """Return the command that prints the unit's log since its last start."""
    return f"journalctl --boot --output=cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {unit})"


def begin_cast(machine: Machine, disk: Path) -> str:
    """Start a cast to an empty disk; return its id once some of the image has arrived."""
    machine.type("systemctl stop diskcast-agent")
    machine.type(f"{empty(disk)}; systemctl start diskcast-agent")
    cast = re.search(r"cast ([0-9a-f]{8}) ", machine.type("diskcast casts create lab --machine pc01"))
    assert cast is not None
    arrived = f'fromjson? | select(.event == "progress" and .bytes_received > {ARRIVED_BYTES})'
    machine.until(f"{log_of('diskcast-agent')} | jq -R '{arrived}' | grep -q progress")
    return cast[1]


def await_cast(machine: Machine, cast: str, disk: Path) -> None:
    """Wait for the end of the cast and check that its image is on the disk."""
    machine.until(f'diskcast casts list --json | grep {cast} | grep -q \'"phase": "done"\'')
    machine.type(same(disk))


def stop_in_the_middle(machine: Machine, disk: Path) -> None:
    """Check that stopping the daemon pauses its casts, and that systemd shows the current state."""
    cast = begin_cast(machine, disk)
    machine.until(f"systemctl show -P StatusText diskcast | grep -q 'casting {cast} of lab'")
    machine.type("systemctl stop diskcast; test $(systemctl show -P Result diskcast) = success")
    machine.type("systemctl start diskcast")
    await_cast(machine, cast, disk)


def hang_in_the_middle(machine: Machine, disk: Path) -> None:
    """Check that a hanging daemon is killed with its threads in the journal, and that its cast continues."""
    cast = begin_cast(machine, disk)
    machine.type("kill -STOP $(systemctl show -P MainPID diskcast)")
    machine.until("test $(systemctl show -P NRestarts diskcast) = 1 && systemctl is-active diskcast")
    machine.type("journalctl -b -u diskcast -o cat | grep -q 'most recent call first'")
    machine.type("journalctl -b -u diskcast -o cat | grep -q \"Failed with result 'watchdog'\"")
    await_cast(machine, cast, disk)


def upgrade_in_the_middle(machine: Machine, disk: Path) -> None:
    """Upgrade as in the how-to, during a cast."""
    cast = begin_cast(machine, disk)
    machine.type(typed(UPGRADE, "Upgrade"))
    machine.type("systemctl restart diskcast")
    await_cast(machine, cast, disk)


def back_up_and_restore(machine: Machine) -> None:
    """Back up and restore as in the how-to; check that root gets a warning."""
    machine.type(typed(UPGRADE, "Back up (SQLite)"))
    output = machine.refuses("diskcast database backup")
    if "runuser -u diskcast" not in output:
        raise LabError(f"root gets no hint for the backup: {output}")
    machine.type("diskcast rooms create after-the-backup --name x")
    machine.type("systemctl stop diskcast")
    machine.type("printf damaged | dd of=/var/lib/diskcast/diskcast.db conv=notrunc status=none")
    machine.refuses("systemctl start diskcast")
    machine.type("test $(systemctl show -P ExecMainStatus diskcast) = 81")
    machine.type(typed(UPGRADE, "Restore (SQLite)"))
    machine.type("diskcast rooms list | grep -q after-the-backup")


def read_the_journal(machine: Machine) -> None:
    """Check the fields and levels of the log lines, and the documented commands."""
    output = machine.type("journalctl --unit=diskcast --output=cat | jq -Rc 'fromjson?'").splitlines()
    for line in map(json.loads, output):
        if not {"time", "level", "event", "daemon"} <= line.keys():
            raise LabError(f"a line of the journal is incomplete: {line}")
    wanted = {"info": "6", "warning": "4", "error": "3"}
    level_of = "[.PRIORITY, ((.MESSAGE | strings | fromjson? | objects | .level) // null)]"
    seen = machine.type(f"journalctl --output=json _SYSTEMD_UNIT=diskcast.service | jq -c '{level_of}'")
    for line in set(seen.splitlines()):
        priority, level = json.loads(line)
        if wanted.get(level, priority) != priority:
            raise LabError(f"a line of level {level} has the journal's priority {priority}")


def cast_without_a_daemon(machine: Machine, disk: Path) -> None:
    """Check the units diskcast-send@ and diskcast-receive; stopping them isn't a failure."""
    machine.type("systemctl stop diskcast diskcast-agent")
    machine.type(empty(disk))
    machine.type("install -Dm640 /root/source/deploy/systemd/receive.env.example /etc/diskcast/receive.env")
    set_option(machine, "receive.env", "DISKCAST_TARGET=.*", f"DISKCAST_TARGET={disk}")
    for name in ("receive.env", "send.env"):
        set_option(machine, name, "DISKCAST_INTERFACE=.*", "DISKCAST_INTERFACE=lo")
    set_option(
        machine, "send.env", "DISKCAST_SEND_OPTIONS=.*", "DISKCAST_SEND_OPTIONS=--wait-for 1 --max-wait 120"
    )
    machine.type("systemctl start diskcast-send@lab")
    code = f"{log_of('diskcast-send@lab')} | jq -Rre 'fromjson? | .join_code // empty' | grep -m1 ."
    machine.until(code)
    set_option(machine, "receive.env", "DISKCAST_JOIN=", f"DISKCAST_JOIN={machine.type(code).strip()}")
    machine.type("systemctl start diskcast-receive")
    machine.until("! systemctl is-active diskcast-send@lab")
    machine.type("test $(systemctl show -P Result diskcast-send@lab) = success")
    machine.type(same(disk))
    machine.type("systemctl start diskcast-send@lab")
    machine.until(f"{log_of('diskcast-send@lab')} | grep -q event")
    machine.type("systemctl stop diskcast-send@lab")
    machine.refuses("systemctl is-failed diskcast-send@lab")
    machine.type("systemctl start diskcast")


def grow(machine: Machine, disk: Path) -> None:
    """Check that the filesystem grows to the end of the disk only with the drop-in."""
    machine.type(
        "install -Dm644 -t /etc/systemd/system/diskcast-agent.service.d /root/source/deploy/systemd/fit.conf"
    )
    machine.type("systemctl daemon-reload")
    start_agent(machine, disk, "--grow")
    machine.type("diskcast casts create lab --machine pc01 --watch")
    if "was grown: its ext4 has 10" not in (
        output := machine.type("journalctl -b -u diskcast-agent -o cat | tail -1")
    ):
        raise LabError(f"the filesystem wasn't grown: {output}")
    machine.type("rm -r /etc/systemd/system/diskcast-agent.service.d && systemctl daemon-reload")


def end_with(machine: Machine, disk: Path, action: str, exit_code: int) -> None:
    """Check that the machine runs the configured action after its image."""
    start_agent(machine, disk, f"--after-cast {action}")
    machine.type("diskcast casts create lab --machine pc01")
    if (code := machine.ended()) != exit_code:
        raise LabError(f"after --after-cast {action} systemd-nspawn ended with {code}, not {exit_code}")


def boots_by_itself(machine: Machine) -> None:
    """Check that enabled units start at boot."""
    machine.boot()
    machine.until("systemctl is-active diskcast diskcast-agent")


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    click.echo(f"{text} … ", nl=False)
    started_s = time.monotonic()
    yield
    click.echo(f"{time.monotonic() - started_s:.0f} s")


@click.command()
@click.option(
    "--base", type=click.Path(path_type=Path, exists=True), help="A Debian as tar, instead of a new one."
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True),
    help="The locked packages, instead of a download.",
)
def booted(base: Path | None, wheels: Path | None) -> int:
    """Install and run deploy/ on a Debian in a container."""
    if os.geteuid() != 0:
        raise LabError("booting a machine needs root")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise LabError(
            f"not installed: {', '.join(missing)} (apt install mmdebstrap systemd-container util-linux)"
        )
    with tempfile.TemporaryDirectory(prefix="diskcast-booted-") as name:
        folder = Path(name)
        with _step("a Debian, the packages, the source"):
            root = make_root(folder, base, wheels)
        with (folder / "disk.img").open("wb") as file:
            file.truncate(DISK_BYTES)
        loops = [path for path in Path("/dev").glob("loop[0-9]*") if path.is_block_device()]
        with loop_device(folder / "disk.img") as disk:
            machine = Machine(root, [Path("/dev/loop-control"), *sorted({*loops, disk})])
            try:
                _go_through(machine, disk)
            finally:
                machine.kill()
    return 0


def _go_through(machine: Machine, disk: Path) -> None:
    with _step("booted"):
        machine.boot()
    with _step("installed as in deploy/README.md"):
        install(machine)
    start_agent(machine, disk, "")
    with _step("the daemon is stopped in the middle of a cast"):
        stop_in_the_middle(machine, disk)
    with _step("the daemon hangs in the middle of a cast"):
        hang_in_the_middle(machine, disk)
    with _step("an upgrade in the middle of a cast"):
        upgrade_in_the_middle(machine, disk)
    with _step("a backup, a damaged database, a restore"):
        back_up_and_restore(machine)
    with _step("the journal"):
        read_the_journal(machine)
    with _step("a cast without a daemon"):
        cast_without_a_daemon(machine, disk)
    with _step("--grow with fit.conf"):
        grow(machine, disk)
    with _step("--after-cast reboot"):
        end_with(machine, disk, "reboot", REBOOT_EXIT)
    with _step("everything is there after a boot"):
        boots_by_itself(machine)
    with _step("--after-cast poweroff"):
        end_with(machine, disk, "poweroff", 0)


if __name__ == "__main__":
    run_command(booted)
