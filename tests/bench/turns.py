"""Two works that take turns: ratios of their speeds, by wall time and by processor time.

Both works of a turn see about the same machine, so the median of the turns' ratios stays the same when others use the
processors too. The ratio by processor time hardly changes then either; that by wall time favours the program with more
threads.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Time of one run of a work."""

    wall_s: float
    cpu_s: float
    """Of this process and of the processes that it awaited."""


def measure(work: Callable[[], object]) -> Cost:
    """Run ``work`` once."""
    before_s, started_s = _cpu_s(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - started_s, _cpu_s() - before_s)


def take_turns(
    ours: Callable[[], object], theirs: Callable[[], object], round_count: int
) -> list[tuple[Cost, Cost]]:
    """Return the costs of ``round_count`` turns; one before them isn't counted, because it allocates memory."""
    return [(measure(ours), measure(theirs)) for _ in range(round_count + 1)][1:]


def compare(turns: Sequence[tuple[Cost, Cost]], name: str) -> list[dict[str, object]]:
    """Return a row for each median ratio of the speed of the first work to that of the second."""
    by_wall = statistics.median(theirs.wall_s / ours.wall_s for ours, theirs in turns)
    by_cpu = statistics.median(theirs.cpu_s / ours.cpu_s for ours, theirs in turns)
    return [
        {"component": name, "rate": by_wall, "unit": "ratio of speeds"},
        {"component": f"{name}, by processor time", "rate": by_cpu, "unit": "ratio of speeds"},
    ]


def median_wall_s(turns: Sequence[tuple[Cost, Cost]]) -> tuple[float, float]:
    """Return the median wall times of both works."""
    first, second = zip(*turns, strict=True)
    return statistics.median(cost.wall_s for cost in first), statistics.median(cost.wall_s for cost in second)


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
