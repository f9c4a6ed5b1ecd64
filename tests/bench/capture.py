"""Captures over a shaped gigabit link, beside ``pack`` of the same disk: ``make bench-capture`` (root).

The daemon runs in one network namespace and the agent in another. The upload must take at least 90 % of the link or of
the compressor, whichever is slower, and both programs stay within their memory. Each data is captured in two places:
*apart* gives the agent and ``pack`` one processor and the daemon the other, as on two machines; *shared* lets all of
them use all processors, so that the daemon's work is taken from the compressor.

The upload is the time from the assignment to the last byte in the partial file; the proof, the second read with the
commit, is reported by itself. ``pack`` and the capture take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from protocol.constants import GIB, MIB
from protocol.shared.units import format_bytes
from sender.imaging.pack import PackOptions, pack_image
from tests.support.network.lab import LIMIT_S, run, wait_until
from tests.support.programs.serving import Daemon, ServiceAgent

LINK_MBIT_PER_S: Final = 1000
PAYLOAD_SHARE: Final = 0.941
"""TCP's share of a gigabit link: 1,448 bytes of each 1,538 on the wire."""
AT_LEAST: Final = 0.9
DAEMON_BYTES_MAX: Final = 400_000_000
AGENT_BYTES_MAX: Final = 300_000_000
_INSIDE: Final = "DISKCAST_BENCH_NAMESPACE"
_SAMPLE_S: Final = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One ``pack`` and one capture of the same disk.

    Attributes:
        pack_s: time of ``pack`` until its last block is packed, without the flush to the disk.
        cpu_s: processor time by program: pack, and agent and daemon in the upload and in the proof.
    """

    stored_bytes: int
    pack_s: float
    upload_s: float
    proof_s: float
    cpu_s: dict[str, float]
    peak_bytes: dict[str, int]


def main() -> int:
    """Run the benchmark in namespaces of its own; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the disk")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=list(_DATA), choices=list(_DATA))
    parser.add_argument("--places", nargs="+", default=["apart", "shared"], choices=["apart", "shared"])
    parser.add_argument("--link-mbit", type=int, default=LINK_MBIT_PER_S, help="rate of the shaped link")
    options = parser.parse_args()
    here, there = f"capture-{os.getpid()}-d", f"capture-{os.getpid()}-a"
    if _INSIDE in os.environ:
        return _measure_all(os.environ[_INSIDE], options)
    try:
        for name in (here, there):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "c0", "netns", here, "type", "veth", "peer", "name", "c1", "netns", there)
        for name, device, address in ((here, "c0", "10.99.0.1/24"), (there, "c1", "10.99.0.2/24")):
            run("ip", "-n", name, "addr", "add", address, "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            shape = ("tbf", "rate", f"{options.link_mbit}mbit", "burst", "256kb", "latency", "20ms")
            run("tc", "-n", name, "qdisc", "add", "dev", device, "root", *shape)
        inside = ["ip", "netns", "exec", here, sys.executable, "-m", "tests.bench.capture", *sys.argv[1:]]
        return subprocess.run(inside, env=os.environ | {_INSIDE: there}, check=False).returncode
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "del", name], check=False)


def _measure_all(agents_namespace: str, options: argparse.Namespace) -> int:
    fine = True
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name) / "pc.disk"
        for data in options.data:
            with disk.open("wb") as file:
                for piece in _DATA[data](options.mib * MIB):
                    file.write(piece)
            for place in options.places:
                folder = Path(name) / f"{data}-{place}"
                folder.mkdir()
                turns = _measure(agents_namespace, disk, folder, place == "apart", options.turns)
                fine &= _report(f"{data}, {place}", turns, options)
    return 0 if fine else 1


def _report(title: str, turns: Sequence[Turn], options: argparse.Namespace) -> bool:
    """Print the medians of some turns; return whether they are good enough."""
    raw_bytes = options.mib * MIB
    stored_bytes = turns[0].stored_bytes
    pack_rate = statistics.median(stored_bytes / turn.pack_s for turn in turns)
    rate = statistics.median(stored_bytes / turn.upload_s for turn in turns)
    link_rate = options.link_mbit * 1e6 / 8 * PAYLOAD_SHARE
    bound = "link" if link_rate < pack_rate else "compressor"
    share = rate / min(link_rate, pack_rate)
    cpu = {
        name: statistics.median(turn.cpu_s[name] for turn in turns) / raw_bytes * GIB
        for name in turns[0].cpu_s
    }
    peaks = {name: max(turn.peak_bytes[name] for turn in turns) for name in turns[0].peak_bytes}
    proof_rate = raw_bytes / statistics.median(turn.proof_s for turn in turns)
    print(f"{title}: {share:.1%} of the {bound}, at least {AT_LEAST:.0%}")
    print(
        f"  stored {stored_bytes / raw_bytes:.0%}; link {format_bytes(link_rate)}/s, pack {format_bytes(pack_rate)}/s,"
        f" upload {format_bytes(rate)}/s of stored bytes; proof and commit {format_bytes(proof_rate)}/s of the disk"
    )
    print("  processor s/GiB: " + ", ".join(f"{name} {value:.2f}" for name, value in cpu.items()))
    print("  memory: " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items()), flush=True)
    return share >= AT_LEAST and peaks["daemon"] <= DAEMON_BYTES_MAX and peaks["agent"] <= AGENT_BYTES_MAX


def _measure(namespace: str, disk: Path, folder: Path, apart: bool, turn_count: int) -> list[Turn]:
    processors = sorted(os.sched_getaffinity(0))
    daemons, agents = ({processors[0]}, set(processors[1:])) if apart else (set(processors), set(processors))
    library = {"library": {"scan_interval_s": 10}}
    with Daemon(folder / "daemon", encrypted=True, prefix=_on(daemons), settings=library) as daemon:
        agent = ServiceAgent(
            folder,
            "pc",
            [daemon],
            target=disk,
            options=("--allow-capture", "--pin", daemon.pin),
            urls=(f"https://10.99.0.1:{daemon.url.rpartition(':')[2]}",),
            interface="c1",
            prefix=("ip", "netns", "exec", namespace, *_on(agents)),
        )
        with agent:
            return [
                _turn(daemon, agent, disk, folder, f"bench-{index}", agents) for index in range(turn_count)
            ]


def _on(processors: set[int]) -> tuple[str, ...]:
    return ("taskset", "--cpu-list", ",".join(map(str, sorted(processors))))


def _turn(
    daemon: Daemon, agent: ServiceAgent, disk: Path, folder: Path, name: str, processors: set[int]
) -> Turn:
    assert agent.program is not None
    packed = folder / "local.dci"
    pack_s, pack_cpu_s = _pack(disk, packed, name, processors)
    machine = wait_until("the machine is enrolled", lambda: daemon.ask("GET", "/machines")["items"])[0]
    pids = {"daemon": daemon.program.pid, "agent": agent.program.pid}
    with _Samples(daemon.images / f".{name}.dci.partial", pids) as samples:
        planned = daemon.ask("POST", f"/machines/{machine['machine_id']}/capture", {"name": name})
        done = agent.program.wait_event(
            "capture_result",
            10 * LIMIT_S,
            lambda event: bool(event["capture_id"] == planned["capture_id"]),
        )
    [started_at] = [
        at
        for at, event in agent.program.timeline()
        if event["event"] == "capture_assigned" and event["capture_id"] == planned["capture_id"]
    ]
    ended_at = next(at for at, event in agent.program.timeline() if event is done)
    uploaded_at = samples.full_at()
    cpu = {"pack": pack_cpu_s}
    for program in pids:
        cpu[f"{program}'s upload"] = samples.cpu_s(program, uploaded_at) - samples.cpu_s(program, started_at)
    for program in pids:
        cpu[f"{program}'s proof"] = samples.cpu_s(program, ended_at) - samples.cpu_s(program, uploaded_at)
    image = daemon.images / f"{name}.dci"
    assert image.read_bytes() == packed.read_bytes()
    return Turn(
        packed.stat().st_size,
        pack_s,
        uploaded_at - started_at,
        ended_at - uploaded_at,
        cpu,
        {program: _peak_bytes(pid) for program, pid in pids.items()},
    )


def _pack(disk: Path, output: Path, name: str, processors: set[int]) -> tuple[float, float]:
    """Pack on some processors; return the time until the last block was packed, and the processor time."""
    ends: list[tuple[float, float]] = []

    def note(done: int, total: int) -> None:
        if done == total:
            ends.append((time.monotonic(), time.process_time()))

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    started_at, cpu_s = time.monotonic(), time.process_time()
    try:
        pack_image(disk, output, PackOptions(name=name), note)
    finally:
        os.sched_setaffinity(0, before)
    return ends[-1][0] - started_at, ends[-1][1] - cpu_s


class _Samples:
    """The size of a file and the processor time of programs, sampled by a thread; a context manager."""

    def __init__(self, path: Path, pids: dict[str, int]) -> None:
        self._path, self._pids = path, pids
        self._at: list[float] = []
        self._size: list[int] = []
        self._cpu: dict[str, list[float]] = {name: [] for name in pids}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> _Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def full_at(self) -> float:
        """Return the time from which the file was as long as ever."""
        return self._at[self._size.index(max(self._size))]

    def cpu_s(self, name: str, at: float) -> float:
        """Return the processor time of a program until then."""
        return self._cpu[name][min(bisect.bisect_left(self._at, at), len(self._at) - 1)]

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._at.append(time.monotonic())
            size = 0
            with contextlib.suppress(FileNotFoundError):
                size = self._path.stat().st_size
            self._size.append(size)
            for name, pid in self._pids.items():
                self._cpu[name].append(_cpu_s(pid))


def _mixed(size_bytes: int) -> Iterator[bytes]:
    """Yield half random bytes, half text, in pieces of a block."""
    pick = random.Random(1)
    for index in range(size_bytes // (256 << 10)):
        yield pick.randbytes(128 << 10) + (b"%015d\n" % index) * (8 << 10)


def _random(size_bytes: int) -> Iterator[bytes]:
    """Yield bytes that don't compress, such as those of media and archives."""
    pick = random.Random(2)
    for _ in range(size_bytes // MIB):
        yield pick.randbytes(MIB)


def _system(size_bytes: int) -> Iterator[bytes]:
    """Yield programs and libraries of this machine, from the start again if they are too few."""
    left_bytes = size_bytes
    while left_bytes:
        for path in sorted(Path("/usr/lib").rglob("*")):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()[: min(left_bytes, 4 * MIB)]
                yield data
                left_bytes -= len(data)
            if not left_bytes:
                return


_DATA: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "random": _random,
    "mixed": _mixed,
    "system": _system,
}


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    sys.exit(main())
