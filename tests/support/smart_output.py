"""Output of ``smartctl --json`` for three kinds of disk, cut to the parts that matter."""

from __future__ import annotations

from typing import Any

NVME: dict[str, Any] = {
    "smartctl": {"exit_status": 0},
    "smart_status": {"passed": True},
    "nvme_smart_health_information_log": {"critical_warning": 0, "percentage_used": 3},
}
ATA: dict[str, Any] = {
    "smartctl": {"exit_status": 24},
    "smart_status": {"passed": False},
    "ata_smart_attributes": {"table": [{"id": 1, "raw": {"value": 7}}, {"id": 5, "raw": {"value": 1208}}]},
}
NO_SMART: dict[str, Any] = {
    "smartctl": {"exit_status": 1, "messages": [{"string": "Unable to detect device type"}]}
}
