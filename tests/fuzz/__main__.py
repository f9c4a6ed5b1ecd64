"""``python -m tests.fuzz``: fuzz every decoder of unauthenticated bytes, and print the executions of each.

Two engines draw input from the same seeds. ``mutation`` is this folder's own and needs nothing; equal seeds give equal
runs. ``atheris`` (libFuzzer) is guided by the branches that an input reaches; it is used where its wheel is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GUIDED_SHARE = 0.1
"""Share of atheris: its executions take ten times as long, and find other branches."""
MEMORY_BYTES_MAX = 4 << 30
"""A decoder that allocates more for one input fails with MemoryError, which is a finding."""


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=10_000_000, help="over all targets (default: 10^7)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--target", help="fuzz this one only")
    parser.add_argument(
        "--engine", choices=("mutation", "atheris"), help="default: both, if atheris is installed"
    )
    return parser.parse_args()


def _fuzz_here(name: str, execution_count: int, seed: int) -> str:
    from tests.fuzz.target import fuzz
    from tests.fuzz.targets import TARGETS

    target = next(target for target in TARGETS if target.name == name)
    result = fuzz(target, execution_count, seed)
    return f"{result.accepted_count / max(1, execution_count):7.1%} accepted, slowest {result.slowest_s * 1e3:.1f} ms"


def _run_atheris(name: str, execution_count: int, seed: int) -> None:
    """Fuzz one target with libFuzzer, which ends this process."""
    import atheris

    with atheris.instrument_imports(include=["protocol", "receiver", "sender"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.mutation import Mutator

    target = next(target for target in TARGETS if target.name == name)

    def mutate(data: bytes, size_max: int, mutation_seed: int) -> bytes:
        mutator = Mutator(mutation_seed)
        return (
            target.mutate(mutator, data)[:size_max] if mutator.chance(0.5) else atheris.Mutate(data, size_max)
        )

    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(target.corpus):
            Path(folder, f"seed-{index}").write_bytes(content)
        size_max = max(4096, *map(len, target.corpus))
        options = [
            f"-runs={execution_count}",
            f"-seed={seed % (1 << 31)}",
            f"-max_len={size_max}",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup(
            [
                sys.argv[0],
                *options,
                "-timeout=10",
                "-rss_limit_mb=4096",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                folder,
            ],
            lambda data: target.execute(bytes(data)) and None,
            custom_mutator=mutate,
        )
        atheris.Fuzz()


def _start_atheris(name: str, execution_count: int, seed: int) -> tuple[int, str]:
    """Fuzz one target in a process of its own; return the executions, and the output after a finding."""
    command = [sys.executable, "-m", "tests.fuzz", "--engine", "atheris", "--target", name]
    command += ["--executions", str(execution_count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    executed = re.search(r"stat::number_of_executed_units: (\d+)", output)
    return int(executed[1]) if executed else 0, "" if done.returncode == 0 else output[-4000:]


def _fuzz_all(engine: str, counts: dict[str, int], seed: int) -> tuple[int, int]:
    """Fuzz targets one after the other, and return the executions and the findings."""
    total = findings = 0
    for name, wanted in counts.items():
        started_s = time.monotonic()
        if engine == "atheris":
            count, finding = _start_atheris(name, wanted, seed)
            detail = f"FINDING\n{finding}" if finding else ""
            findings += bool(finding)
        else:
            count, detail = wanted, _fuzz_here(name, wanted, seed)
        total += count
        rate = count / (time.monotonic() - started_s)
        print(f"{count:>10,} executions  {name:<30} {rate:>9,.0f}/s  {detail}", flush=True)
    return total, findings


def main() -> int:
    """Fuzz, print the counts, and return the exit code: 1 after a finding."""
    arguments = _parse_arguments()
    if arguments.engine == "atheris" and arguments.target:
        _run_atheris(arguments.target, arguments.executions, arguments.seed)
        return 0  # unreachable: libFuzzer exits
    from tests.fuzz.targets import split

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    shares = {"mutation": 1.0}
    if arguments.engine is not None:
        shares = {arguments.engine: 1.0}
    elif importlib.util.find_spec("atheris"):
        shares = {"mutation": 1 - GUIDED_SHARE, "atheris": GUIDED_SHARE}
    total = findings = 0
    for engine, share in shares.items():
        executions = round(arguments.executions * share)
        print(f"engine {engine}, seed {arguments.seed}", flush=True)
        counts = {arguments.target: executions} if arguments.target else split(executions)
        done, found = _fuzz_all(engine, counts, arguments.seed)
        total, findings = total + done, findings + found
    print(f"{total:>10,} executions in all, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
