"""Casts by udpcast and UFTP, run as in their manuals, on the same network and with the same bytes as diskcast."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from tests.bench.measurement import Measurement, failed, first_difference, measured
from tests.support.network.lab import INTERFACE, LabError, Network, run, wait_for_udp_socket

_UFTP_BUFFER_BYTES = "8388608"
_UFTP_RATE_KBIT_PER_S = "1000000"

UDPCAST = "udpcast"
UFTP = "UFTP"


def udpcast_version() -> str | None:
    """Return the installed version, or None."""
    if shutil.which("udp-sender") is None:
        return None
    return run("dpkg-query", "--show", "--showformat", "${Version}", "udpcast").strip()


def uftp_version() -> str | None:
    """Return the installed version, or None."""
    if shutil.which("uftp") is None:
        return None
    return run("dpkg-query", "--show", "--showformat", "${Version}", "uftp").strip()


def cast_udpcast(network: Network, image: Path, lossy: bool, limit_s: float) -> Measurement:
    """Cast with ``udp-sender --full-duplex``, its fastest mode on a switched network.

    With loss ``--half-duplex``: in full duplex udpcast 20120424 sends slice n + 2 while a receiver still misses part of
    slice n, and that receiver gives up ("Dropped by server", 8 of 10 casts of 1 GiB at 1 or 5 % loss).
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        targets = [Path(folder) / str(index) for index in range(len(network.receivers))]
        receivers = [
            network.start(host, ["udp-receiver", "--interface", INTERFACE, "--nokbd", "--file", target])
            for host, target in zip(network.receivers, targets, strict=True)
        ]
        wait_for_udp_socket(receivers)
        started_s = time.monotonic()
        duplex = "--half-duplex" if lossy else "--full-duplex"
        options = ["--interface", INTERFACE, "--min-receivers", str(len(receivers)), "--nokbd", duplex]
        sender = network.start(network.sender, ["udp-sender", *options, "--file", image])
        try:
            for program in [sender, *receivers]:
                program.wait(max(1.0, started_s + limit_s - time.monotonic()))
        except LabError:
            return failed(UDPCAST, f"> {limit_s:.0f} s (stopped)")
        finally:
            ended_s = time.monotonic()
            for program in [sender, *receivers]:
                program.close()
        if failure := _difference(image, targets):
            return failed(UDPCAST, failure)
        usages = [receiver.usage for receiver in receivers]
        return measured(UDPCAST, ended_s - started_s, sender.usage, usages)


def cast_uftp(network: Network, image: Path, limit_s: float) -> Measurement:
    """Cast with UFTP at 1 Gbit/s; its receivers are daemons, which are stopped after the sender."""
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        folders = [Path(folder) / str(index) for index in range(len(network.receivers))]
        receivers = []
        for host, target in zip(network.receivers, folders, strict=True):
            target.mkdir()
            argv = ["uftpd", "-d", "-I", INTERFACE, "-D", str(target), "-B", _UFTP_BUFFER_BYTES]
            receivers.append(network.start(host, argv))
        wait_for_udp_socket(receivers)
        started_s = time.monotonic()
        options = ["-I", INTERFACE, "-B", _UFTP_BUFFER_BYTES, "-R", _UFTP_RATE_KBIT_PER_S]
        sender = network.start(network.sender, ["uftp", *options, image])
        try:
            sender.wait(limit_s)
        except LabError:
            return failed(UFTP, f"> {limit_s:.0f} s (stopped)")
        finally:
            ended_s = time.monotonic()
            for program in [sender, *receivers]:
                program.close()
        if failure := _difference(image, [target / image.name for target in folders]):
            return failed(UFTP, failure)
        usages = [receiver.usage for receiver in receivers]
        return measured(UFTP, ended_s - started_s, sender.usage, usages)


def _difference(image: Path, targets: list[Path]) -> str:
    for index, target in enumerate(targets):
        if not target.exists():
            return f"receiver {index} wrote nothing"
        offset_bytes = first_difference(image, target)
        if offset_bytes is not None:
            return f"receiver {index} differs at byte {offset_bytes}"
    return ""
