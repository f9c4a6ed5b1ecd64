"""A network of namespaces to cast in, and programs that run there, measured.

``Network`` makes a sender, N receivers and a switch, each a network namespace of this process's own;
``Program`` is one started process whose JSON lines are collected and whose processor time and peak memory are
known when it ends. Both are context managers that leave nothing behind, and end only what they started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

REPOSITORY = Path(__file__).resolve().parents[3]
INTERFACE = "eth0"
LIMIT_S: Final = 300.0
"""Longer than anything takes that is waited for, also on a machine that has other things to do: what is waited for is
an event, never time.
"""

T = TypeVar("T")

_SAMPLE_INTERVAL_MS = 50
_POLL_INTERVAL_S = 0.02
_EVENTS_MAX = 100_000
_LINE_BYTES_MAX = 16 << 20
_serial = itertools.count()


class LabError(Exception):
    """A command that builds the network failed, or a program didn't do what was waited for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What one ended program cost.

    ``peak_bytes`` is the largest resident set. It is sampled from ``VmHWM`` every 50 ms, because ``ru_maxrss``
    of a child also counts the memory of the process that started it (exec keeps the larger of both).
    """

    user_s: float
    system_s: float
    peak_bytes: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


class Program:
    """A started process in a process group of its own.

    Args:
        argv: the command.
        prefix: what runs ``argv`` elsewhere by ``exec``, e.g. ``("ip", "netns", "exec", NAME)``.
        environment: added to this process's environment.

    Attributes:
        events: the JSON lines so far.
        arrivals: when each of them came (monotonic).
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.argv = [str(part) for part in argv]
        self.events: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.usage: Usage | None = None
        self._changed = threading.Condition()
        self._exit_code: int | None = None
        self._peak_bytes = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._popen = subprocess.Popen(
            [*prefix, *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
        self._thread = threading.Thread(target=self._watch, name=f"watch {self.pid}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        with self._changed:
            return self._exit_code

    @property
    def result(self) -> dict[str, Any]:
        """The last JSON line, which has to be the result."""
        with self._changed:
            last = self.events[-1] if self.events else {}
        if last.get("event") != "result":
            raise LabError(f"{self.describe()}: no result line; last line {last}")
        return last

    def stderr_text(self) -> str:
        """What it wrote to stderr so far, at most the last 8 KiB."""
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")

    def describe(self) -> str:
        """Command, state and the end of stderr: what a failed test wants to show."""
        state = "running" if self.exit_code is None else f"exit code {self.exit_code}"
        return f"`{' '.join(self.argv[-12:])}` ({state})\n{self.stderr_text()[-2000:]}"

    def wait(self, timeout_s: float) -> int:
        """The exit code.

        Raises:
            LabError: it still runs after ``timeout_s``.
        """
        with self._changed:
            ended = self._changed.wait_for(lambda: self._exit_code is not None, timeout_s)
        if not ended:
            raise LabError(f"still running after {timeout_s:g} s: {self.describe()}")
        assert self._exit_code is not None
        return self._exit_code

    def wait_event(
        self, name: str, timeout_s: float, matches: Callable[[dict[str, Any]], bool] = lambda _event: True
    ) -> dict[str, Any]:
        """The first JSON line whose ``event`` is ``name`` and that ``matches``, waited for.

        Raises:
            LabError: the program ended without it, or ``timeout_s`` passed.
        """

        def found() -> dict[str, Any] | None:
            return next((e for e in self.events if e.get("event") == name and matches(e)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._exit_code is not None, timeout_s)
            event = found()
        if event is None:
            raise LabError(f"no {name!r} event within {timeout_s:g} s: {self.describe()}")
        return event

    def timeline(self) -> list[tuple[float, dict[str, Any]]]:
        """Every JSON line with the time (monotonic) at which it came."""
        with self._changed:
            return list(zip(self.arrivals, self.events, strict=True))

    def signal(self, number: signal.Signals) -> None:
        """Send ``number`` to the whole process group, unless the program has ended."""
        with self._changed:  # the watcher reaps under this lock, so the id can't have been given to another
            if self._exit_code is None:
                os.killpg(self.pid, number)

    def close(self, grace_s: float = 20.0) -> None:
        """End it: SIGTERM, and SIGKILL after ``grace_s``: what it has to put back, it can, on a busy machine too."""
        self.signal(signal.SIGTERM)
        try:
            self.wait(grace_s)
        except LabError:
            self.signal(signal.SIGKILL)
            self.wait(LIMIT_S)
        self._thread.join()
        self._stderr.close()

    def _watch(self) -> None:
        stdout = self._popen.stdout
        assert stdout is not None
        os.set_blocking(stdout.fileno(), False)
        pidfd = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(stdout, select.POLLIN)
        partial = b""
        ended = False
        while not ended:
            for fd, _mask in poll.poll(_SAMPLE_INTERVAL_MS):
                if fd == pidfd:
                    ended = True
                elif not (chunk := os.read(fd, 1 << 16)):
                    poll.unregister(fd)
                else:
                    partial = self._collect(partial + chunk)
            self._sample_peak()
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(stdout.fileno(), 1 << 16):
                partial = self._collect(partial + chunk)
        os.close(pidfd)
        stdout.close()
        with self._changed:
            _, status, usage = os.wait4(self.pid, 0)
            self._exit_code = self._popen.returncode = os.waitstatus_to_exitcode(status)
            self.usage = Usage(usage.ru_utime, usage.ru_stime, self._peak_bytes)
            self._changed.notify_all()

    def _sample_peak(self) -> None:
        with contextlib.suppress(OSError):  # it may have ended just now
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self._peak_bytes = int(line.split()[1]) * 1024

    def _collect(self, text: bytes) -> bytes:
        *lines, partial = text.split(b"\n")
        parsed = [json.loads(line) for line in lines if line.startswith(b"{")]
        if parsed:
            with self._changed:
                self.events += parsed
                self.arrivals += [time.monotonic()] * len(parsed)
                del self.events[:-_EVENTS_MAX]
                del self.arrivals[:-_EVENTS_MAX]
                self._changed.notify_all()
        return partial[-_LINE_BYTES_MAX:]


@contextlib.contextmanager
def held(program: Program) -> Iterator[None]:
    """The program stands still meanwhile: a cast that waits for an agent isn't over before something has happened."""
    program.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.signal(signal.SIGCONT)


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """One namespace with one interface ``eth0``."""

    namespace: str
    address: str
    switch_port: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Runs a command in the namespace; it replaces itself, so that the process id is the program's."""
        return ("ip", "netns", "exec", self.namespace)


@dataclasses.dataclass(frozen=True, slots=True)
class PortCounters:
    """What the switch has done at one port to a host.

    ``passed_bytes`` and ``offered_bytes`` count a super-datagram's headers once, ``link_bytes`` in every datagram, as a
    cable would carry them: use the first two for shares that got lost, the last for rates.
    """

    offered_bytes: int
    """What the sender's port took in: nearly all of it is flooded to every other port."""
    passed_bytes: int
    """What left by this port."""
    link_bytes: int
    """What left by this port's shaper; 0 without one."""
    queued_bytes: int
    """What waits in the shaper."""


class Network:
    """A sender and ``receiver_count`` receivers on one switch, all in namespaces of this process's own.

    Names hold the process id, a serial number and chance, and every interface lives inside a namespace, so that any
    number of test runs can go on at once with the same addresses: 10.77.0.1 the sender, 10.77.0.2 the first
    receiver; and what a run that was killed left behind isn't in the way when its process id comes again.
    """

    def __init__(self, receiver_count: int) -> None:
        self._prefix = f"dc{os.getpid()}-{next(_serial)}-{secrets.token_hex(2)}"
        self.switch = f"{self._prefix}-sw"
        hosts = [
            Host(f"{self._prefix}-h{index}", f"10.77.0.{index + 1}", f"v{index}")
            for index in range(receiver_count + 1)
        ]
        self.sender, self.receivers = hosts[0], hosts[1:]
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    @property
    def hosts(self) -> list[Host]:
        return [self.sender, *self.receivers]

    def start(
        self, host: Host, argv: Sequence[str | Path], *, environment: dict[str, str] | None = None
    ) -> Program:
        """Start a program in ``host``'s namespace; the network ends it if nobody else did."""
        program = Program(argv, prefix=host.prefix, environment=environment)
        self._programs.append(program)
        return program

    def set_offload(self, enabled: bool) -> None:
        """Whether super-datagrams (UDP_SEGMENT) cross the network whole, as between good cards, or as single
        datagrams, cut by the sender's kernel.
        """
        state = "on" if enabled else "off"
        run(*self.sender.prefix, "ethtool", "-K", INTERFACE, "tx-udp-segmentation", state)

    def set_loss(
        self, permille: int, hosts: Sequence[Host] | None = None, *, keep_filter: bool = False
    ) -> None:
        """Random loss of UDP packets that arrive at each of ``hosts`` (default: the receivers); 0 ends it.

        A super-datagram counts as one packet: turn the offload off for loss of single datagrams.

        Args:
            permille: share to lose.
            hosts: where.
            keep_filter: with 0, look at each packet all the same: what that costs is then no part of a comparison.
        """
        loses = permille or keep_filter
        condition = f"numgen random mod 1000 {f'< {permille}' if permille else '> 999'}" if loses else ""
        self._set_drops(condition, hosts)

    def drop_every(self, count: int, hosts: Sequence[Host] | None = None) -> None:
        """Drop exactly every ``count``-th arriving UDP packet; 0 ends it."""
        self._set_drops(f"numgen inc mod {count} == 0" if count else "", hosts)

    def set_rate(self, mbit_per_s: int, hosts: Sequence[Host] | None = None) -> None:
        """Shape the switch's ports to ``hosts`` (default: the receivers) as a slow link does; 0 ends it."""
        for host in self.receivers if hosts is None else hosts:
            device = ("dev", host.switch_port, "root")
            if mbit_per_s:
                shape = ("tbf", "rate", f"{mbit_per_s}mbit", "burst", "256kb", "latency", "20ms")
                run("tc", "-n", self.switch, "qdisc", "replace", *device, *shape)
            elif "tbf" in run("tc", "-n", self.switch, "qdisc", "show", *device):
                run("tc", "-n", self.switch, "qdisc", "del", *device)

    def port_counters(self, hosts: Sequence[Host] | None = None) -> list[PortCounters]:
        """The switch's counters at the ports to ``hosts`` (default: the receivers), all of one moment."""
        links = json.loads(run("ip", "-s", "-j", "-n", self.switch, "link", "show"))
        qdiscs = json.loads(run("tc", "-s", "-j", "-n", self.switch, "qdisc", "show"))
        totals = {link["ifname"]: link["stats64"] for link in links}
        shapers = {qdisc["dev"]: qdisc for qdisc in qdiscs if qdisc["kind"] == "tbf"}
        offered_bytes = totals[self.sender.switch_port]["rx"]["bytes"]
        return [
            PortCounters(
                offered_bytes,
                totals[host.switch_port]["tx"]["bytes"],
                shapers.get(host.switch_port, {}).get("bytes", 0),
                shapers.get(host.switch_port, {}).get("backlog", 0),
            )
            for host in (self.receivers if hosts is None else hosts)
        ]

    def set_link(self, host: Host, up: bool) -> None:
        """Plug or unplug ``host``'s cable at the switch."""
        run("ip", "-n", self.switch, "link", "set", host.switch_port, "up" if up else "down")

    def _set_drops(self, condition: str, hosts: Sequence[Host] | None) -> None:
        rule = f"meta l4proto udp {condition} counter drop\n" if condition else ""
        hook = f"type filter hook ingress device {INTERFACE} priority 0;"
        ruleset = f"flush ruleset\ntable netdev lab {{\n chain loss {{\n {hook}\n {rule} }}\n}}\n"
        for host in self.receivers if hosts is None else hosts:
            run(*host.prefix, "nft", "-f", "-", text=ruleset if condition else "flush ruleset\n")

    def _build(self) -> None:
        for namespace in [self.switch, *(host.namespace for host in self.hosts)]:
            run("ip", "netns", "add", namespace)
        # Snooping would need a querier; without it the bridge floods multicast, as a plain switch does.
        run("ip", "-n", self.switch, "link", "add", "br0", "up", "type", "bridge", "mcast_snooping", "0")
        for host in self.hosts:
            peer = ("peer", "name", INTERFACE, "netns", host.namespace)
            run("ip", "-n", self.switch, "link", "add", host.switch_port, "type", "veth", *peer)
            run("ip", "-n", self.switch, "link", "set", host.switch_port, "master", "br0", "up")
            batch = (
                f"link set lo up\naddr add {host.address}/24 brd + dev {INTERFACE}\n"
                f"link set {INTERFACE} up\nroute add 224.0.0.0/4 dev {INTERFACE}\n"
            )
            run("ip", "-n", host.namespace, "-batch", "-", text=batch)

    def _remove(self) -> None:
        for program in self._programs:
            program.close()
        present = run("ip", "netns", "list").split()
        for namespace in [*(host.namespace for host in self.hosts), self.switch]:
            if namespace in present:
                # Whatever a program left behind in a namespace of ours is ours too.
                for pid in run("ip", "netns", "pids", namespace).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "del", namespace)


def wait_until(
    what: str,
    condition: Callable[[], T],
    timeout_s: float = LIMIT_S,
    *,
    describe: Callable[[], str] = str,
) -> T:
    """The first value of ``condition`` that is true.

    Raises:
        LabError: there was none within ``timeout_s``.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise LabError(f"not within {timeout_s:g} s: {what}; {describe()}")
        time.sleep(_POLL_INTERVAL_S)


def run(*argv: str | Path, text: str | None = None, timeout_s: float = LIMIT_S) -> str:
    """Run a short command and return its standard output.

    Raises:
        LabError: it failed; the message is its standard error.
    """
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(map(str, argv))}` failed: {done.stderr.strip()}")
    return done.stdout


def diskcast(*arguments: str | Path) -> list[str]:
    """The command line of ``diskcast`` under this interpreter."""
    return [sys.executable, "-m", "sender", *map(str, arguments)]


def diskcast_agent(*arguments: str | Path) -> list[str]:
    """The command line of ``diskcast-agent`` under this interpreter."""
    return [sys.executable, "-m", "receiver", *map(str, arguments)]


def send(network: Network, image: Path, *options: str | Path) -> Program:
    """Start ``diskcast send --json`` at the network's sender."""
    argv = diskcast("send", image, "--interface", INTERFACE, "--json", *options)
    return network.start(network.sender, argv)


def receive(network: Network, index: int, target: Path, *options: str | Path) -> Program:
    """Start ``diskcast-agent receive --json`` at receiver ``index``."""
    argv = diskcast_agent("receive", "--target", target, "--interface", INTERFACE, "--json", *options)
    return network.start(network.receivers[index], argv)


def wait_for_udp_socket(programs: Sequence[Program], timeout_s: float = LIMIT_S) -> None:
    """Wait until each program's namespace, in which nothing else may run, has a bound UDP socket.

    Raises:
        LabError: one hasn't within ``timeout_s``.
    """

    def is_bound(program: Program) -> bool:
        if program.exit_code is not None:
            raise LabError(f"it has ended without a UDP socket: {program.describe()}")
        return len(Path(f"/proc/{program.pid}/net/udp").read_text().splitlines()) >= 2

    for program in programs:
        wait_until("a UDP socket", functools.partial(is_bound, program), timeout_s, describe=program.describe)


def privileged_obstacle() -> str | None:
    """Why namespaces or loop devices can't be used here, or None when they can."""
    if os.geteuid() != 0:
        return "not root"
    try:
        with Network(1) as network:
            network.set_offload(False)
            network.set_loss(1)
    except (LabError, OSError) as error:
        return f"no network namespaces with nftables: {error}"
    with tempfile.NamedTemporaryFile() as backing:
        backing.truncate(1 << 20)
        try:
            device = run("losetup", "--find", "--show", backing.name).strip()
        except (LabError, OSError) as error:
            return f"no loop devices: {error}"
        run("losetup", "--detach", device)
    return None
