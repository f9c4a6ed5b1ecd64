"""A network of namespaces for casts, and programs that run there and are measured.

``Network`` creates a sender, N receivers and a switch, each a network namespace of this process. ``Program`` runs a
process, collects its JSON lines and measures its processor time and peak memory. Both are context managers that leave
nothing behind, and end only processes that they started.
"""

from __future__ import annotations

import abc
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

from tests.support.signing import signing_environment

REPOSITORY = Path(__file__).resolve().parents[3]
INTERFACE = "eth0"
LIMIT_S: Final = 300.0
"""Timeout of every wait, also on a busy machine; tests wait for events, never for time."""

T = TypeVar("T")

_SAMPLE_INTERVAL_MS = 50
_POLL_INTERVAL_S = 0.02
_EVENTS_MAX = 100_000
_LINE_BYTES_MAX = 16 << 20
_serial = itertools.count()


class LabError(Exception):
    """A command that builds the network failed, or an awaited event didn't happen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """The resources that an ended program used.

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
        prefix: a command that runs ``argv`` elsewhere by ``exec``, e.g. ``("ip", "netns", "exec", NAME)``.
        environment: variables added to this process's environment.

    Attributes:
        events: the JSON lines so far.
        arrivals: the time of arrival of each line (monotonic).
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
            env={**os.environ, **signing_environment(), **(environment or {})},
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
        """Return the exit code: None while it runs, negative if a signal ended it."""
        with self._changed:
            return self._exit_code

    @property
    def result(self) -> dict[str, Any]:
        """Return the last JSON line, which must be the result."""
        with self._changed:
            last = self.events[-1] if self.events else {}
        if last.get("event") != "result":
            raise LabError(f"{self.describe()}: no result line; last line {last}")
        return last

    def stderr_text(self) -> str:
        """Return its output to stderr so far, at most the last 8 KiB."""
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")

    def describe(self) -> str:
        """Return the command, state and end of stderr, for a failed test."""
        state = "running" if self.exit_code is None else f"exit code {self.exit_code}"
        return f"`{' '.join(self.argv[-12:])}` ({state})\n{self.stderr_text()[-2000:]}"

    def wait(self, timeout_s: float) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            LabError: the program still runs after ``timeout_s``.
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
        """Wait for the first JSON line whose ``event`` is ``name`` and that ``matches``, and return it.

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
        """Return every JSON line with its time of arrival (monotonic)."""
        with self._changed:
            return list(zip(self.arrivals, self.events, strict=True))

    def signal(self, number: signal.Signals) -> None:
        """Send ``number`` to the whole process group, unless the program has ended."""
        with self._changed:  # the watcher reaps under this lock, so the id can't have been given to another
            if self._exit_code is None:
                os.killpg(self.pid, number)

    def close(self, grace_s: float = 20.0) -> None:
        """Send SIGTERM, and SIGKILL after ``grace_s``, which leaves time to clean up even on a busy machine."""
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
    """Stop the program within the context, which keeps a cast that waits for it from ending."""
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
        """Prefix that runs a command in the namespace by exec, with the same process id."""
        return ("ip", "netns", "exec", self.namespace)


@dataclasses.dataclass(frozen=True, slots=True)
class PortCounters:
    """Counters of the switch at one port to a host.

    ``passed_bytes`` and ``offered_bytes`` count a super-datagram's headers once, ``link_bytes`` in every datagram, as a
    cable would carry them: use the first two for shares that got lost, the last for rates.
    """

    offered_bytes: int
    """Bytes that arrived from the sender; nearly all of them are flooded to every other port."""
    passed_bytes: int
    """Bytes sent through this port."""
    link_bytes: int
    """Bytes sent through this port's shaper; 0 without one."""
    queued_bytes: int
    """Bytes queued in the shaper."""


class NamespaceNetwork(abc.ABC):
    """Network namespaces of this process, and the programs that run in them; a context manager that ends both.

    Names contain the process id, a serial number and a random part, and every interface lives inside a namespace. Any
    number of test runs can therefore use the same addresses at once, and the leftovers of a killed run don't disturb a
    later process with the same id.

    Args:
        kind: start of the namespaces' names.
    """

    def __init__(self, kind: str) -> None:
        self._prefix = f"{kind}{os.getpid()}-{next(_serial)}-{secrets.token_hex(2)}"
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        try:
            for namespace in self._namespaces:
                run("ip", "netns", "add", namespace)
            self._connect()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    @property
    @abc.abstractmethod
    def _namespaces(self) -> Sequence[str]:
        """Return the names of all namespaces."""

    @abc.abstractmethod
    def _connect(self) -> None:
        """Create the interfaces in the new namespaces."""

    def _run_program(
        self, prefix: Sequence[str], argv: Sequence[str | Path], environment: dict[str, str] | None
    ) -> Program:
        """Start a program, which the network ends if it is still running at the end."""
        program = Program(argv, prefix=prefix, environment=environment)
        self._programs.append(program)
        return program

    def _remove(self) -> None:
        # A program may need those that were started before it in order to end in peace.
        for program in reversed(self._programs):
            program.close()
        present = {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line}
        for namespace in self._namespaces:
            if namespace in present:
                # Whatever a program left behind in a namespace of ours is ours too.
                for pid in run("ip", "netns", "pids", namespace).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "del", namespace)


class Network(NamespaceNetwork):
    """A sender, 10.77.0.1, and ``receiver_count`` receivers, from 10.77.0.2 on, at one switch."""

    def __init__(self, receiver_count: int) -> None:
        super().__init__("dc")
        self.switch = f"{self._prefix}-sw"
        hosts = [
            Host(f"{self._prefix}-h{index}", f"10.77.0.{index + 1}", f"v{index}")
            for index in range(receiver_count + 1)
        ]
        self.sender, self.receivers = hosts[0], hosts[1:]

    @property
    def hosts(self) -> list[Host]:
        return [self.sender, *self.receivers]

    def start(
        self, host: Host, argv: Sequence[str | Path], *, environment: dict[str, str] | None = None
    ) -> Program:
        """Start a program in ``host``'s namespace; the network ends it if it is still running at the end."""
        return self._run_program(host.prefix, argv, environment)

    def set_offload(self, enabled: bool) -> None:
        """Let super-datagrams (UDP_SEGMENT) cross the network whole, as between good cards, or have the sender's kernel
        split them.
        """
        state = "on" if enabled else "off"
        run(*self.sender.prefix, "ethtool", "-K", INTERFACE, "tx-udp-segmentation", state)

    def set_mtu(self, mtu_bytes: int, *devices: tuple[str, str]) -> None:
        """Change the MTU of interfaces, each given by its namespace and its name."""
        for namespace, device in devices:
            run("ip", "-n", namespace, "link", "set", device, "mtu", str(mtu_bytes))

    def set_loss(
        self, permille: int, hosts: Sequence[Host] | None = None, *, keep_filter: bool = False
    ) -> None:
        """Drop arriving UDP packets at random at each of ``hosts`` (default: the receivers); 0 ends it.

        A super-datagram counts as one packet: turn the offload off for loss of single datagrams.

        Args:
            permille: share to drop.
            hosts: the hosts that drop.
            keep_filter: with 0, still filter each packet, so that the filter's cost is the same in a comparison.
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
        """Return the switch's counters at the ports to ``hosts`` (default: the receivers), all of one moment."""
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

    @property
    def _namespaces(self) -> list[str]:
        return [*(host.namespace for host in self.hosts), self.switch]

    def _connect(self) -> None:
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


def wait_until(
    description: str,
    condition: Callable[[], T],
    timeout_s: float = LIMIT_S,
    *,
    describe: Callable[[], str] = str,
) -> T:
    """Wait until ``condition`` returns a true value, and return that.

    Raises:
        LabError: it didn't within ``timeout_s``.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise LabError(f"not within {timeout_s:g} s: {description}; {describe()}")
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
    """Return the command line of ``diskcast`` under this interpreter."""
    return [sys.executable, "-m", "sender", *map(str, arguments)]


def diskcast_agent(*arguments: str | Path) -> list[str]:
    """Return the command line of ``diskcast-agent`` under this interpreter."""
    return [sys.executable, "-m", "receiver", *map(str, arguments)]


def send(network: Network, image: Path, *options: str | Path) -> Program:
    """Start ``diskcast send --open --json`` at the network's sender: tests start agents before it has a join code."""
    argv = diskcast("send", image, "--interface", INTERFACE, "--open", "--json", *options)
    return network.start(network.sender, argv)


def receive(network: Network, index: int, target: Path, *options: str | Path) -> Program:
    """Start ``diskcast-agent receive --open --json`` at receiver ``index``."""
    argv = diskcast_agent(
        "receive", "--target", target, "--interface", INTERFACE, "--open", "--json", *options
    )
    return network.start(network.receivers[index], argv)


def wait_for_udp_socket(programs: Sequence[Program], timeout_s: float = LIMIT_S) -> None:
    """Wait until each program's namespace, in which nothing else may run, has a bound UDP socket.

    Raises:
        LabError: one has none within ``timeout_s``.
    """

    def is_bound(program: Program) -> bool:
        if program.exit_code is not None:
            raise LabError(f"the program ended without a UDP socket: {program.describe()}")
        return len(Path(f"/proc/{program.pid}/net/udp").read_text().splitlines()) >= 2

    for program in programs:
        wait_until("a UDP socket", functools.partial(is_bound, program), timeout_s, describe=program.describe)


def privileged_obstacle() -> str | None:
    """Return the reason why namespaces or loop devices are unavailable here; None if they are available."""
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
