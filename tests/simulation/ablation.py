"""Ablation of rate control: ``python -m tests.simulation.ablation [SWITCH]... | all``.

Every switch replaces values in modules of :mod:`protocol.sending.rate` by neutral ones. The scenarios run with and
without them; a switch that changes no figure for the worse names something that can be deleted. Figures are means over
the seeds, and a difference counts if it is larger than the tolerance and the spread between the seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import click
import numpy as np

from tests.simulation.scenarios import BY_NAME, SCENARIOS
from tests.simulation.traces import record, summarise

PACKAGE: Final = "protocol.sending"
ROOM: Final = f"{PACKAGE}.rate."
BOUND_TESTS: Final = "tests/unit/protocol/sending/rate"
CONSTANTS_TESTS: Final = f"{BOUND_TESTS}/test_constants.py"
"""Tests that compare the documented constants with the code: they fail for every switch."""
QUICK: Final = (
    "shaped-10",
    "shaped-50",
    "shaped-200",
    "shaped-800",
    "shallow-200",
    "gigabit",
    "loss-5",
    "step",
    "slow-processor",
    "busy-threads",
    "far-200",
    "burst-loss-gigabit",
    "tcp",
    "tcp-share",
    "one-at-half",
    "slow-disk-demote",
    "slow-room",
)
"""Scenarios of a first sieve, cheap and different from each other."""

Figures = dict[str, float]
Results = dict[str, list[Figures]]
"""Figures of one run for each seed, by scenario."""


@dataclasses.dataclass(frozen=True, slots=True)
class Switch:
    """A constant or special case, and the values that take its effect away, by ``module.NAME``."""

    name: str
    without: str
    values: Mapping[str, object]


def _switch(name: str, without: str, **values: object) -> Switch:
    """Return a switch of one module: ``name`` is ``module.part``; ``__`` stands for a dot."""
    module = name.partition(".")[0]
    return Switch(
        name, without, {f"{module}.{key.replace('__', '.')}": value for key, value in values.items()}
    )


def _always(value: object) -> object:
    """Return an attribute that has this value whatever is assigned to it."""
    return property(lambda _self: value, lambda _self, _value: None)


def _never(*_arguments: object, **_more: object) -> bool:
    return False


SWITCHES: Final = (
    _switch("rate_sample.queue_bytes", "jitter at a low rate is a queue", _QUEUE_BYTES_MIN=0),
    _switch("rate_control.tick", "ticks every 100 ms", _TICK_S=0.1),
    _switch("rate_control.climb", "slow start at a third of its pace", _CLIMB_DOUBLING_S=0.18),
    _switch("rate_control.headroom", "the rate may exceed twice what is sent", _HEADROOM=math.inf),
    _switch("rate_control.unproven", "slow start doesn't wait for deliveries", _UNPROVEN=math.inf),
    _switch("rate_control.late", "machines that report late are probed", _LATE=math.inf),
    _switch("rate_control.silent", "a room that is too busy to report is flooded", _SILENT=math.inf),
    _switch("rate_control.near", "receivers are probed at any rate", _NEAR=0.0),
    _switch("rate_control.backoff", "no distance below the knee", _BACKOFF=0.0),
    _switch("rate_control.fill_high", "full buffers are no limit", _FILL_HIGH=1.0),
    _switch("rate_control.loss_margin", "no margin of loss", _LOSS_MARGIN=0.0),
    _switch("rate_control.lone_cut", "a single report lowers the rate to any limit", _LONE_CUT=0.0),
    _switch("limit_claims.others", "receivers don't confirm each other's limits", _OTHERS_S=-1.0),
    _switch("limit_claims.own", "a receiver doesn't confirm its own limit", _OWN_S=-1.0),
    _switch("loss_experiment.experiment", "no experiment", LossExperiment__add_loss=_never),
    _switch("loss_experiment.beta", "a decrease by 5 %", BETA=0.95),
    _switch(
        "loss_experiment.overload",
        "slow start continues at any loss",
        LossExperiment__overload=_always(False),
    ),
    _switch("loss_experiment.ratio_min", "any two rates differ", _RATIO_MIN=1.0),
    _switch("loss_experiment.timeout", "first samples hold for 10 s", _TIMEOUT_S=10.0),
    _switch(
        "competing_traffic.queue", "other traffic is not recognised", CompetingTraffic__queue_seen=_never
    ),
    _switch("competing_traffic.undrained_max", "other traffic after one cut", _UNDRAINED_MAX=1),
    _switch("competing_traffic.drained_share", "any queue that falls is the cast's", _DRAINED_SHARE=0.0),
    _switch("competing_traffic.competing", "control by loss for a second", _COMPETING_S=1.0),
    _switch("capacity.cubic", "a cubic of a tenth", _CUBIC_PER_S3=0.024),
    _switch("capacity.share_cubic", "ten times CUBIC's growth", _SHARE_SEGMENTS_PER_S3=4.0),
    _switch("capacity.escape", "no doubling beyond the knee", _ESCAPE=math.inf),
    _switch("capacity.escape_doubling", "doubling beyond the knee as in slow start", _ESCAPE_DOUBLING_S=0.06),
    _switch("capacity.escapes", "doubling beyond any knee", Capacity__escapes=_always(True)),
    _switch("capacity.loss_weight", "the usual loss is a plain mean", _LOSS_WEIGHT_MIN=0.0),
    _switch("stragglers.alike", "only the least is tried", ALIKE=1.0),
    _switch("stragglers.recovered", "no hysteresis", _RECOVERED=1.0),
    _switch("stragglers.moment", "slow receivers are reported at once", SLOW_FOR_A_MOMENT_S=0.0),
    _switch("stragglers.trial", "no trials", StragglerWatch___run_trial=_never),
    _switch("stragglers.trial_s", "trials of 0.3 s", _TRIAL_S=0.3),
    _switch("stragglers.trial_interval", "a trial every 2 s", _TRIAL_INTERVAL_S=2.0),
    _switch("stragglers.trial_backoff", "a trial every 10 s", _TRIAL_INTERVAL_MAX_S=10.0),
    _switch("work_rates.smoothing", "work of the last report", _SMOOTHING_S=1e-6),
    _switch("parity.nacks", "parity that leaves few NACKs", _NACKS_PER_BLOCK_MAX=0.01),
    _switch("parity.nacks_bursty", "one number of NACKs", _NACKS_PER_BLOCK_BURSTY_MAX=0.4),
    _switch("parity.loss_min", "parity for any loss", _LOSS_MIN=1e-9),
    _switch("parity.interleave_loss", "interleaving for any loss", _INTERLEAVE_LOSS_MIN=1e-9),
    _switch("parity.interleave", "no interleaving", _INTERLEAVE_BURST_MIN=math.inf),
    _switch("parity.levels", "two levels a decade", _LEVELS_PER_DECADE=2),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest change for the worse of a figure that counts as none: a share of it, or an amount."""

    share: float = 0.0
    amount: float = 0.0
    sign: float = 1.0


TOLERANCES: Final = {
    "seconds": Tolerance(share=0.01, amount=0.05),
    "main_seconds": Tolerance(share=0.01, amount=0.05),
    "lost": Tolerance(amount=0.003),
    "socket_lost": Tolerance(amount=0.003),
    "slow_changes": Tolerance(amount=0.5),
    "sent_ratio": Tolerance(share=0.01),
    "reached_s": Tolerance(amount=0.2),
    "tcp_share": Tolerance(amount=0.03, sign=-1.0),
}
_NEVER_S = 999.0


def figures(name: str, scale: float, seed: int) -> Figures:
    """Run one scenario; ``scale`` shortens images of links that don't change."""
    model = BY_NAME[name].build()
    if all(len(receiver.port.steps) == 1 for receiver in model.receivers):
        model = dataclasses.replace(model, image_bytes=int(model.image_bytes * scale))
    model = dataclasses.replace(model, seed=seed)
    try:
        summary = summarise(record(model))
    except AssertionError:
        return dict.fromkeys(TOLERANCES, math.inf)
    ends = sorted(summary.finished_s)
    return {
        "seconds": summary.seconds,
        "main_seconds": ends[max(0, len(ends) - 2)],
        "lost": float(summary.lost_share),
        "socket_lost": summary.socket_lost_share,
        "slow_changes": float(summary.slow_changes_max),
        "sent_ratio": summary.sent_ratio,
        "reached_s": min(_NEVER_S, max(summary.reached_s, default=0.0)),
        "tcp_share": summary.tcp_share,
    }


def differences(scenario: str, before: list[Figures], after: list[Figures]) -> list[tuple[bool, str]]:
    """Return for each figure that changed by more than noise whether it is worse, and a text."""
    found = []
    for key, tolerance in TOLERANCES.items():
        old = [one[key] for one in before]
        new = [one[key] for one in after]
        mean = float(np.mean(old))
        noise = max(old) - min(old)
        change = float(np.mean(new)) - mean
        if abs(change) > tolerance.share * abs(mean) + tolerance.amount + noise:
            found.append((change * tolerance.sign > 0, f"{scenario} {key} {mean:.3g} → {mean + change:.3g}"))
    return found


def apply(values: Mapping[str, object]) -> None:
    """Put values into their modules, and wherever those were imported to."""
    for path, value in values.items():
        module_name, _, name = path.partition(".")
        owner: object = importlib.import_module(ROOM + module_name)
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        old = getattr(owner, last)
        setattr(owner, last, value)
        for importing in [module for key, module in sys.modules.items() if key.startswith(PACKAGE)]:
            if not outer and getattr(importing, last, None) is old:
                setattr(importing, last, value)


def broken_bounds() -> list[str]:
    """Run the rate's unit tests, fluid models of networks among them; return the names of those that fail."""
    import pytest

    failed: list[str] = []

    class Collect:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid.rpartition("::")[2])

    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", f"--ignore={CONSTANTS_TESTS}", BOUND_TESTS], [Collect()])
    return failed


def in_child(call: Callable[[], object]) -> object:
    """Run ``call`` in a forked process, so that its changes don't stay; return its result."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(call()))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        child.join()


def _run(switches: Iterable[Switch], scenario: str, scale: float, seeds: int) -> list[Figures]:
    def call() -> object:
        for switch in switches:
            apply(switch.values)
        return [figures(scenario, scale, seed) for seed in range(1, seeds + 1)]

    result = in_child(call)
    return result if isinstance(result, list) else [dict.fromkeys(TOLERANCES, math.inf)]


def _bounds(switches: Iterable[Switch]) -> list[str]:
    def call() -> object:
        for switch in switches:
            apply(switch.values)
        return broken_bounds()

    result = in_child(call)
    return result if isinstance(result, list) else ["the tests do not run"]


def judge(
    switches: list[Switch],
    scenarios: Iterable[str],
    baseline: Results,
    scale: float,
    seeds: int,
    *,
    all_of_them: bool,
) -> tuple[list[str], list[str]]:
    """Return the figures that are worse and those that are better without a part of rate control."""
    worse = [f"test {name}" for name in _bounds(switches)]
    better: list[str] = []
    for scenario in scenarios:
        if worse and not all_of_them:
            break
        after = _run(switches, scenario, scale, seeds)
        for is_worse, text in differences(scenario, baseline[scenario], after):
            (worse if is_worse else better).append(text)
    return worse, better


def _baseline(path: Path | None, scenarios: Iterable[str], scale: float, seeds: int) -> Results:
    known: dict[str, Results] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    results = known.setdefault(f"scale {scale} seeds {seeds}", {})
    for scenario in scenarios:
        if scenario not in results:
            results[scenario] = _run([], scenario, scale, seeds)
            if path is not None:
                path.write_text(json.dumps(known, indent=1) + "\n")
    return results


@click.command()
@click.argument("names", nargs=-1)
@click.option("--together", is_flag=True, help="Take all switches out at once.")
@click.option("--scenario", "chosen", multiple=True, help="Scenario to run, or all (default: a quick set).")
@click.option("--scale", default=0.25, show_default=True, help="Share of each image that is cast.")
@click.option("--seeds", default=2, show_default=True, help="Number of runs of each scenario.")
@click.option("--all-misses", is_flag=True, help="Continue after the first figure that is worse.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="File that keeps the figures of the complete code."
)
def main(
    names: tuple[str, ...],
    together: bool,
    chosen: tuple[str, ...],
    scale: float,
    seeds: int,
    all_misses: bool,
    baseline: Path | None,
) -> None:
    """Simulate casts without a part of rate control, and print the figures that miss it.

    With "nothing" as the only switch, compare the present code with the baseline file.
    """
    known = {switch.name: switch for switch in SWITCHES}
    if not names or set(names) - {*known, "all", "nothing"}:
        raise click.UsageError(
            "name switches, or all:\n" + "\n".join(f"  {key}: {s.without}" for key, s in known.items())
        )
    picked = [known[name] for name in (known if names == ("all",) else names) if name != "nothing"]
    scenarios = [s.name for s in SCENARIOS] if chosen == ("all",) else list(chosen or QUICK)
    before = _baseline(baseline, scenarios, scale, seeds)
    for group in [picked] if together or not picked else [[switch] for switch in picked]:
        worse, better = judge(group, scenarios, before, scale, seeds, all_of_them=all_misses)
        title = ", ".join(f"{switch.name} ({switch.without})" for switch in group) or "nothing"
        click.echo(f"{title}: {'missed by ' + '; '.join(worse) if worse else 'NOT MISSED'}")
        if better:
            click.echo(f"    better without: {'; '.join(better)}")


if __name__ == "__main__":
    main()
