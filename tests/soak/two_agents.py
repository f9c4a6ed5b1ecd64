"""Two agents race for one target, again and again: ``python -m tests.soak.two_agents``.

In every round two processes restore different images to the same file, or, with ``--device`` (root), to the same loop
device. Each may succeed or be refused; afterwards the target must hold the whole image of one that succeeded. Exit code
1 if it doesn't.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import click

from protocol.errors import DiskcastError, TargetError
from receiver.restore.disk_progress import JsonProgress
from receiver.restore.restore_image import restore
from tests.bench.terminal import run_command
from tests.support.disks.devices import loop_device
from tests.support.disks.disk_images import MadeImage, make_image
from tests.support.network.lab import LIMIT_S

_AGENTS: Final = 2
_KINDS: Final = "dr" * 12


@dataclasses.dataclass(frozen=True, slots=True)
class Race:
    """The results of all rounds.

    Attributes:
        outcomes: number of rounds by the sorted results of the agents: ``complete``, or the name of an error.
        wrong_rounds: rounds after which the target didn't hold the image of an agent that succeeded.
    """

    outcomes: Counter[tuple[str, ...]]
    wrong_rounds: tuple[int, ...]


def race(directory: Path, round_count: int, *, device: bool = False) -> Race:
    """Run all rounds in ``directory``.

    Args:
        directory: empty; for the images and the target.
        round_count: number of rounds.
        device: race for a loop device instead of a file that doesn't exist at first.
    """
    made = [make_image(_KINDS, seed=seed) for seed in range(_AGENTS)]
    images = [image.write(directory / f"{number}.dci") for number, image in enumerate(made)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(_AGENTS + 1)
    results = [context.SimpleQueue() for _ in images]
    file = directory / "target.raw"
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_device(file, len(made[0].raw))) if device else file
        agents = [
            context.Process(target=_restore_again, args=(path, target, round_count, barrier, queue))
            for path, queue in zip(images, results, strict=True)
        ]
        for agent in agents:
            agent.start()
            stack.callback(agent.kill)
        outcomes: Counter[tuple[str, ...]] = Counter()
        wrong = []
        for number in range(round_count):
            if not device and number % 2 == 0:
                file.unlink(missing_ok=True)  # in every other round it exists already
            barrier.wait(LIMIT_S)
            round_results = [queue.get() for queue in results]
            outcomes[tuple(sorted(round_results))] += 1
            if not _holds_a_winner(file, made, round_results):
                wrong.append(number)
    return Race(outcomes, tuple(wrong))


def _holds_a_winner(file: Path, made: list[MadeImage], results: list[str]) -> bool:
    content = file.read_bytes() if file.exists() else b""
    return any(
        result == "complete" and content == image.raw for image, result in zip(made, results, strict=True)
    )


@contextlib.contextmanager
def _device(file: Path, size_bytes: int) -> Iterator[Path]:
    with file.open("wb") as created:
        created.truncate(size_bytes)
    with loop_device(file) as device:
        yield device


def _restore_again(
    image: Path, target: Path, round_count: int, barrier: Barrier, results: SimpleQueue[str]
) -> None:
    for _ in range(round_count):
        barrier.wait(LIMIT_S)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                restore(image, target, JsonProgress())
        except TargetError as error:
            results.put(type(error).__name__)
        except DiskcastError as error:
            results.put(f"{type(error).__name__}: {error}")
        else:
            results.put("complete")


@click.command()
@click.option("--rounds", default=2000, show_default=True, help="Number of rounds.")
@click.option("--device", is_flag=True, help="Race for a loop device (root).")
def main(rounds: int, *, device: bool) -> None:
    """Let two agents race for one target."""
    with tempfile.TemporaryDirectory() as directory:
        found = race(Path(directory), rounds, device=device)
    for results, count in found.outcomes.most_common():
        click.echo(f"{count:6} {', '.join(results)}")
    if found.wrong_rounds:
        click.echo(f"wrong results in rounds {', '.join(map(str, found.wrong_rounds[:20]))}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
