"""Progress of a restore as lines: if these fail, a serial console stays silent for an hour, or is flooded."""

from __future__ import annotations

from protocol.constants import MIB
from receiver.restore.disk_progress import LineProgress


def test_a_serial_console_gets_a_line_after_ten_seconds_or_five_per_cent() -> None:
    lines: list[str] = []
    now_s = 0.0
    progress = LineProgress(lines.append, lambda: now_s)
    progress.start_phase("write", 1000 * MIB)
    for done in range(0, 1000, 25):
        now_s += 0.1
        progress.advance(done * MIB)
    assert lines[0] == "write: 50.0 MiB of 1000.0 MiB, 5%"
    count = len(lines)
    assert 13 <= count <= 19, "about one for each 5 %"
    progress.start_phase("verify", 1000 * MIB)
    for _ in range(100):
        now_s += 1.0
        progress.advance(MIB)
    assert len(lines) == count + 10, "one each 10 s, though nothing moves"
    assert lines[-1] == "verify: 1.0 MiB of 1000.0 MiB, 0%"


def test_a_phase_without_bytes_is_silent() -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append)
    progress.start_phase("fit", 0)
    progress.advance(0)
    assert lines == []
