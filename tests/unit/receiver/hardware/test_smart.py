"""SMART. If these fail, a dying disk looks healthy, or a healthy one is warned about."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ProtocolError
from protocol.model.hardware import DiskHealth, SmartVerdict
from protocol.program.system_tools import find_tool
from receiver.hardware.smart import parse_health_untrusted, read_health
from tests.support.disks.devices import loop_device
from tests.support.smart_output import ATA, NO_SMART, NVME


@pytest.mark.parametrize(
    ("document", "health"),
    [
        (NVME, DiskHealth(SmartVerdict.PASSED, 3, None)),
        (ATA, DiskHealth(SmartVerdict.FAILING, None, 1208)),
        (NO_SMART, DiskHealth()),
        (
            NVME | {"nvme_smart_health_information_log": {"percentage_used": 4000}},
            DiskHealth(SmartVerdict.PASSED, 255),
        ),
        (NVME | {"nvme_smart_health_information_log": 5, "smart_status": "ok"}, DiskHealth()),
        (
            ATA | {"ata_smart_attributes": {"table": [7, {"id": 5, "raw": "x"}]}},
            DiskHealth(SmartVerdict.FAILING),
        ),
    ],
)
def test_the_disks_own_judgement_is_read(document: dict[str, Any], health: DiskHealth) -> None:
    assert parse_health_untrusted(json.dumps(document).encode()) == health


@pytest.mark.parametrize("output", [b"", b"smartctl 7.3", b"[]", b'{"smart_status": {"passed": true}}'])
def test_other_output_is_refused(output: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_health_untrusted(output)


@pytest.mark.skipif(
    os.geteuid() != 0 or find_tool("smartctl") is None, reason="needs root for a loop device, and smartctl"
)
def test_a_real_disk_without_smart_is_of_unknown_health(tmp_path: Path) -> None:
    """smartctl itself runs in its confinement, and a disk that it doesn't know isn't an error."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with loop_device(tmp_path / "disk") as path:
        status = path.stat()
        assert stat.S_ISBLK(status.st_mode)
        assert read_health(str(path), status.st_rdev) == DiskHealth()
