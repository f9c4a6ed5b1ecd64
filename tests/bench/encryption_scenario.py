"""The cost of ``--encrypt``, paired with casts of the same image without it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator

from tests.bench.figures import Figure
from tests.bench.room import Bench, Image
from tests.support.network.lab import Network

RECEIVER_COUNT = 2
LIMIT_S = 120.0
NAME = "encrypt"


@dataclasses.dataclass(slots=True)
class _Costs:
    """Costs of the casts of one kind, one entry a round."""

    options: tuple[str, ...]
    seconds: list[float] = dataclasses.field(default_factory=list)
    sender_cpu_s: list[float] = dataclasses.field(default_factory=list)
    receiver_cpu_s: list[float] = dataclasses.field(default_factory=list)


def encryption(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure time and processor time of encrypted casts in relation to plain ones."""
    plain, encrypted = _Costs(()), _Costs(("--encrypt",))
    with Network(RECEIVER_COUNT) as network:

        def measure(costs: _Costs) -> float:
            with bench.cast(network, image, *costs.options, limit_s=LIMIT_S) as cast:
                record = cast.finish()
                usages = [program.usage for program in (cast.sender, *cast.agents)]
            sender, *agents = [math.nan if usage is None else usage.cpu_s for usage in usages]
            costs.seconds.append(record.seconds)
            costs.sender_cpu_s.append(sender)
            costs.receiver_cpu_s.append(statistics.fmean(agents))
            return record.seconds

        bench.alternate(lambda: measure(plain), lambda: measure(encrypted))
    for quantity, name, at_least, at_most in (
        ("throughput", "seconds", 85.0, None),
        ("sender's processor time", "sender_cpu_s", None, 115.0),
        ("receivers' processor time", "receiver_cpu_s", None, 115.0),
    ):
        before, after = (statistics.median(getattr(costs, name)) for costs in (plain, encrypted))
        share = before / after if name == "seconds" else after / before
        note = f"median {after:.2f} s, without encryption {before:.2f} s"
        yield Figure(NAME, quantity, 100 * share, "%", at_least=at_least, at_most=at_most, note=note)
