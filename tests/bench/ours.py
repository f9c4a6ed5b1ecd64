"""Casts by diskcast as an operator runs it: one ``diskcast send``, and agents that were started before."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench.measurement import Measurement, failed, first_difference, measured
from tests.support.network.lab import LabError, Network, Program, diskcast, receive, send, wait_for_udp_socket

DISKCAST = "diskcast"
CAST_ID = "be9c4ca5"
_PACK_LIMIT_S = 600.0


def pack(image: Path, output: Path) -> None:
    """Pack ``image`` once for all rounds.

    Raises:
        LabError: packing failed.
    """
    with Program(diskcast("pack", image, "-o", output, "--json")) as program:
        if program.wait(_PACK_LIMIT_S):
            raise LabError(program.describe())


def cast_diskcast(network: Network, image: Path, packed: Path, limit_s: float) -> Measurement:
    """Cast ``packed`` and compare the targets with ``image``.

    The agents get the cast's id, so they join at its first ANNOUNCE instead of listening for other casts for 2.5 s.
    """
    count = len(network.receivers)
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        targets = [Path(folder) / str(index) for index in range(count)]
        receivers = [
            receive(network, index, target, "--cast", CAST_ID) for index, target in enumerate(targets)
        ]
        wait_for_udp_socket(receivers)
        started_s = time.monotonic()
        sender = send(network, packed, "--wait-for", str(count), "--cast-id", CAST_ID)
        try:
            codes = [
                program.wait(max(1.0, started_s + limit_s - time.monotonic()))
                for program in [sender, *receivers]
            ]
        except LabError:
            return failed(DISKCAST, f"> {limit_s:.0f} s (stopped)")
        finally:
            ended_s = time.monotonic()
            for program in [sender, *receivers]:
                program.close()
        if any(codes):
            return failed(DISKCAST, f"exit codes {codes}")
        for index, target in enumerate(targets):
            if (offset_bytes := first_difference(image, target)) is not None:
                return failed(DISKCAST, f"receiver {index} differs at byte {offset_bytes}")
        usages = [receiver.usage for receiver in receivers]
        cast_s = float(sender.result["seconds"])
        return measured(DISKCAST, ended_s - started_s, sender.usage, usages, cast_s=cast_s)
