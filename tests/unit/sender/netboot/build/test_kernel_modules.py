"""The choice of kernel modules: a missing one leaves a machine without its disk or network."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.netboot.build.kernel_modules import (
    choose_modules,
    copy_modules,
    firmware_names,
    first_stage_modules,
    parse_modules_dep,
)

MODULES_DEP = """\
kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko: kernel/drivers/pps/pps_core.ko
kernel/drivers/pps/pps_core.ko:
kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko: kernel/net/wireless/cfg80211.ko
kernel/net/wireless/cfg80211.ko:
kernel/drivers/scsi/lpfc/lpfc.ko: kernel/drivers/scsi/scsi_transport_fc.ko
kernel/drivers/scsi/scsi_transport_fc.ko:
kernel/drivers/pci/controller/vmd.ko:
kernel/fs/nls/nls_iso8859-1.ko:
kernel/fs/overlayfs/overlay.ko:
kernel/fs/squashfs/squashfs.ko: kernel/lib/b.ko kernel/lib/a.ko
kernel/lib/a.ko:
kernel/lib/b.ko: kernel/lib/a.ko
kernel/sound/snd.ko:
"""


def test_subtrees_and_single_modules_come_with_what_they_need() -> None:
    chosen = choose_modules(parse_modules_dep(MODULES_DEP))
    assert "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko" in chosen
    assert "kernel/drivers/pps/pps_core.ko" in chosen
    assert "kernel/drivers/pci/controller/vmd.ko" in chosen
    assert "kernel/fs/nls/nls_iso8859-1.ko" in chosen
    assert not {path for path in chosen if "wireless" in path or "sound" in path or "lpfc" in path}


def test_the_first_stage_inserts_needed_modules_first_and_skips_built_in_ones() -> None:
    assert first_stage_modules(parse_modules_dep(MODULES_DEP)) == [
        "kernel/lib/a.ko",
        "kernel/lib/b.ko",
        "kernel/fs/squashfs/squashfs.ko",
        "kernel/fs/overlayfs/overlay.ko",
    ]


def test_compressed_modules_are_unpacked_and_keep_their_signature(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name, content in {"a.ko": b"signed a", "b.ko.xz": lzma.compress(b"signed b")}.items():
        (source / "kernel").mkdir(parents=True, exist_ok=True)
        (source / "kernel" / name).write_bytes(content)
    copy_modules(source, target, ["kernel/a.ko", "kernel/b.ko.xz"])
    assert (target / "kernel/a.ko").read_bytes() == b"signed a"
    assert (target / "kernel/b.ko").read_bytes() == b"signed b"
    (source / "kernel/c.ko.zst").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"c\.ko\.zst has an unknown compression"):
        copy_modules(source, target, ["kernel/c.ko.zst"])


def test_firmware_is_found_in_modules_and_in_the_kernel() -> None:
    module = b"\x7fELF\0license=GPL\0firmware=tigon/tg3.bin\0firmware=tigon/tg3_tso.bin\0depends=ptp\0"
    builtin = b"rtsx.license=GPL\0cpu.firmware=amd/ucode.bin\0firmware_class.parm=path:text\0"
    assert firmware_names([module], builtin) == {"tigon/tg3.bin", "tigon/tg3_tso.bin", "amd/ucode.bin"}
