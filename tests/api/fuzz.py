"""A longer fuzz test of the API: ``python -m tests.api.fuzz [SECONDS] [SEED]``.

First the test with other examples until the time is over, then schemathesis' own run with all its phases
(coverage of each limit, chains of requests) for as long again.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from sender.api.guard import auth
from sender.store.records.access import Role
from tests.api.fuzzing import ENDLESS, Tally, fuzz, operations
from tests.api.served import PREFIX, Served, serve

EXAMPLES = 20


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {seconds:g} s")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    auth._FAILURES_BURST = 1_000_000_000  # fuzzing sends wrong tokens all the time
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as served:
        with served.client() as client:
            for index in range(3):
                client.post("/rooms", json={"name": f"Room {index}"}).raise_for_status()
                client.post(
                    "/machines", json={"name": f"pc-{index}", "serial": f"S{index}"}
                ).raise_for_status()
                cast = {"image": "made", "wait_for": 1, "room_id": f"room-{index}"}
                client.post("/casts", json=cast).raise_for_status()
        tally = Tally()
        end_at = time.monotonic() + seconds / 2
        turn = 0
        while time.monotonic() < end_at:
            for operation in operations():
                fuzz(served, operation, examples_count=EXAMPLES, seed_number=seed + turn, tally=tally)
                if time.monotonic() >= end_at:
                    break
            turn += 1
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(tally.statuses.items()))
        print(f"{tally.count} requests in {turn} turns, every response as documented; {statuses}")
        return _whole_run(served, seconds / 2, seed)


def _whole_run(served: Served, seconds: float, seed: int) -> int:
    """Run schemathesis as its users do; return 0 if it found nothing."""
    command = [
        Path(sys.executable).parent / "schemathesis",
        "run",
        f"{served.url}{PREFIX}/openapi.json",
        f"--header=Authorization: Bearer {served.secrets[Role.OPERATE]}",
        f"--seed={seed}",
        f"--max-time={seconds:g}",
        # The operator's token can't check in, random URLs aren't fetched, and valid ids may be unknown.
        "--exclude-path=/api/v1/check-in",
        "--exclude-operation-id=add_image",
        "--exclude-operation-id=import_machines",  # any text may be CSV
        "--exclude-operation-id=list_machine_history",  # history outlives its machine
        *(f"--exclude-operation-id={name}" for name in ENDLESS),
        "--exclude-checks=positive_data_acceptance",
    ]
    return subprocess.run(command, check=False, timeout=2 * seconds + 120).returncode


if __name__ == "__main__":
    sys.exit(main())
