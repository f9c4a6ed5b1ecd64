"""Kill the agent at random times and run the same command again: ``python -m tests.soak.kill``.

Every round is a cast on the loopback interface to a loop device over a file. The agent gets SIGKILL at a random time:
at some point of a run's duration, after some progress lines, or when the device has read or written some bytes. These
times fall into all phases, and more often into the commit at the end. The agent is started again, and perhaps killed
again; the last run must succeed and leave the correct bytes. Bytes that a run received although its target had them are
counted. Needs root; exit code 1 if a bound is exceeded.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from protocol.constants import MIB
from protocol.image.incomplete_marker import parse_marker_untrusted
from protocol.shared.units import format_bytes, parse_size_bytes
from tests.bench.terminal import run_command
from tests.support.disks.bootable_disk import SECTOR_BYTES, looks_bootable
from tests.support.disks.devices import loop_device
from tests.support.disks.large_disk import LargeImage, make_large_image, make_old_disk
from tests.support.network.lab import LIMIT_S, LabError, Program
from tests.support.network.loopback_cast import RECEIVER_BYTES_MAX, LoopbackCast

KILLS_PER_ROUND_MAX: Final = 3
REFETCHED_BYTES_MAX: Final = 64 * MIB
_POLL_S: Final = 0.002
_END_BYTES: Final = 4 * MIB
"""Seconds around the end of a run, where the first and last blocks are committed; both ends are wiped before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One start of the agent.

    Attributes:
        killed: rule for the time of the kill; empty for the last run of a round.
        state: state of its target.
        missing_bytes: stored bytes of the blocks that its target missed at the start.
        received_bytes: bytes that it reported as received.
        peak_bytes: peak resident memory.
        faults: detected faults.
    """

    killed: str
    state: str
    missing_bytes: int
    received_bytes: int
    peak_bytes: int
    faults: tuple[str, ...]

    @property
    def beyond_bytes(self) -> int:
        return max(0, self.received_bytes - self.missing_bytes)


class Round:
    """One cast to one target.

    Args:
        folder: folder of the target's file.
        image: the image to cast.
        rate: value of ``diskcast send --rate``.
        rng: random numbers of this round.
    """

    def __init__(self, folder: Path, image: LargeImage, rate: str, rng: random.Random) -> None:
        self._image = image
        self._rate = rate
        self._rng = rng
        self._backing = folder / "target"
        make_old_disk(self._backing, image, rng.choice((0.0, 0.3, 0.9)), rng.getrandbits(32))

    def undisturbed_s(self) -> float:
        """Measure a complete run."""
        with (
            loop_device(self._backing) as device,
            LoopbackCast(self._image.path, "--rate", self._rate) as cast,
        ):
            started_s = time.monotonic()
            agent = cast.receive(device)
            if agent.wait(LIMIT_S):
                raise LabError(agent.describe())
            return time.monotonic() - started_s

    def runs(self, undisturbed_s: float, kill_count_max: int) -> Iterator[Run]:
        """Start, kill and start again; the last run isn't killed."""
        kill_count = self._rng.randint(1, min(KILLS_PER_ROUND_MAX, kill_count_max))
        with (
            loop_device(self._backing) as device,
            LoopbackCast(self._image.path, "--rate", self._rate) as cast,
        ):
            for _ in range(kill_count):
                missing_bytes = self._image.missing_bytes(self._backing)
                agent = cast.receive(device)
                how = self._kill(agent, device, undisturbed_s)
                yield self._seen(agent, how, missing_bytes)
                if not how:
                    break  # it exited before the kill
            else:
                missing_bytes = self._image.missing_bytes(self._backing)
                agent = cast.receive(device)
                agent.wait(LIMIT_S)
                yield self._seen(agent, "", missing_bytes)
            cast.sender.signal(signal.SIGKILL)  # it would wait for the killed agents

    def _kill(self, agent: Program, device: Path, undisturbed_s: float) -> str:
        """Kill the agent at a random time; return the rule, or nothing if it exited before."""
        kind = self._rng.choice(("time", "progress", "read", "written", "written", "end"))
        if kind == "time":
            moment = self._rng.uniform(0.0, undisturbed_s)
            _wait_at_most(agent, moment)
            how = f"after {moment:.2f} s"
        elif kind == "progress":
            count = self._rng.randint(1, max(1, int(undisturbed_s)))
            extra_s = self._rng.uniform(0.0, 1.0)
            while agent.exit_code is None and len(agent.events) < count:
                time.sleep(_POLL_S)
            _wait_at_most(agent, extra_s)
            how = f"{extra_s:.2f} s after {count} lines"
        else:
            moved = _Moved.READ if kind == "read" else _Moved.WRITTEN
            expected_bytes = self._image.wrong_blocks(self._backing).size * self._image.block_bytes
            if moved is _Moved.READ:
                expected_bytes += self._image.raw_path.stat().st_size
            if kind == "end":
                moment_bytes = max(0, expected_bytes + _END_BYTES // 2 - self._rng.randrange(_END_BYTES))
            else:
                moment_bytes = self._rng.randrange(expected_bytes + 1)
            start_bytes = moved.bytes_of(device)
            while agent.exit_code is None and moved.bytes_of(device) < start_bytes + moment_bytes:
                time.sleep(_POLL_S)
            how = f"{format_bytes(moment_bytes)} {moved}"
        if agent.exit_code is not None:
            return ""
        agent.signal(signal.SIGKILL)
        agent.wait(LIMIT_S)
        return how

    def _seen(self, agent: Program, how: str, missing_bytes: int) -> Run:
        progress: dict[str, Any] = next(
            (event for event in reversed(agent.events) if "bytes_received" in event), {}
        )
        assert agent.usage is not None
        run = Run(
            how,
            self._state(),
            missing_bytes,
            int(progress.get("bytes_received", 0)),
            agent.usage.peak_bytes,
            (),
        )
        return dataclasses.replace(run, faults=tuple(self._faults(agent, run)))

    def _state(self) -> str:
        wrong = self._image.wrong_blocks(self._backing)
        edge = MIB // self._image.block_bytes
        if wrong.size == 0:
            return "complete"
        with self._backing.open("rb") as file:
            mark = parse_marker_untrusted(file.read(SECTOR_BYTES))
        if mark is None:
            return "not touched"
        inside = wrong[(wrong >= edge) & (wrong < self._image.kind.size - edge)]
        return "being written" if inside.size else "all but its edges"

    def _faults(self, agent: Program, run: Run) -> Iterator[str]:
        wrong = self._image.wrong_blocks(self._backing)
        if run.killed and wrong.size:
            with self._backing.open("rb") as file:
                head = file.read(2 * SECTOR_BYTES)
            changed = parse_marker_untrusted(head) is not None
            if changed and looks_bootable(head):
                yield "marked as incomplete, and looks bootable"
            if run.received_bytes and not changed:
                yield "data was received, and the target isn't marked as incomplete"
        if not run.killed:
            if agent.exit_code:
                yield f"exit code {agent.exit_code}: {agent.describe()}"
            if wrong.size:
                yield f"{wrong.size} blocks are wrong, first {wrong[:5].tolist()}"
        if run.beyond_bytes > REFETCHED_BYTES_MAX:
            yield f"{format_bytes(run.beyond_bytes)} received beyond what was missing"
        if run.peak_bytes > RECEIVER_BYTES_MAX:
            yield f"{format_bytes(run.peak_bytes)} of memory"


def _wait_at_most(agent: Program, seconds: float) -> None:
    try:
        agent.wait(seconds)
    except LabError:
        return


class _Moved(enum.StrEnum):
    """Counter of a block device's bytes since its creation."""

    READ = "read"
    WRITTEN = "written"

    def bytes_of(self, device: Path) -> int:
        fields = Path("/sys/class/block", device.name, "stat").read_text().split()
        return int(fields[2 if self is _Moved.READ else 6]) * SECTOR_BYTES


def soak(folder: Path, image: LargeImage, rate: str, kill_count: int, seed: int) -> list[Run]:
    """Run rounds until there were enough kills; print each run to stderr."""
    runs: list[Run] = []
    undisturbed_s = Round(folder, image, rate, random.Random(f"{seed} undisturbed")).undisturbed_s()
    click.echo(f"undisturbed: {undisturbed_s:.1f} s", err=True)
    number = 0
    while (kills := sum(bool(run.killed) for run in runs)) < kill_count:
        rng = random.Random(f"{seed} {number}")  # a round can be repeated without the earlier ones
        for run in Round(folder, image, rate, rng).runs(undisturbed_s, kill_count - kills):
            runs.append(run)
            click.echo(
                f"round {number}: {run.killed or 'to the end':<28} {run.state:<17} missing "
                f"{format_bytes(run.missing_bytes)}, received {format_bytes(run.received_bytes)}"
                + "".join(f"\n    {fault}" for fault in run.faults),
                err=True,
            )
        number += 1
    return runs


def summary(runs: list[Run]) -> dict[str, object]:
    """Return the results as JSON."""
    killed = [run for run in runs if run.killed]
    return {
        "event": "result",
        "ok": not any(run.faults for run in runs),
        "kills": len(killed),
        "killed_while": dict(collections.Counter(run.state for run in killed)),
        "ended_well": sum(not run.killed and not run.faults for run in runs),
        "beyond_bytes_max": max(run.beyond_bytes for run in runs),
        "peak_bytes_max": max(run.peak_bytes for run in runs),
        "faults": [fault for run in runs for fault in run.faults],
    }


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True)
@click.option("--seed", type=int, help="to repeat a run; drawn and shown otherwise")
@click.option("--size", default="160MiB", show_default=True)
@click.option("--rate", default="400M", show_default=True)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="for image and target")
def main(kills: int, seed: int | None, size: str, rate: str, directory: Path | None) -> None:
    """Kill the agent many times and check every target."""
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    click.echo(f"seed {seed}", err=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="diskcast-kill-") as name:
        folder = Path(name)
        image = make_large_image(folder, parse_size_bytes(size), seed)
        result = summary(soak(folder, image, rate, kills, seed))
    click.echo(json.dumps({**result, "seed": seed}))
    if not result["ok"]:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    run_command(main)
