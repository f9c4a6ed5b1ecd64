"""The doctor names the package of each program that exports and virtual machines lack."""

from pathlib import Path

from protocol.program.findings import Status
from sender.doctor.export_doctor import judge_exports


def test_each_missing_program_is_a_warning_with_its_package(tmp_path: Path) -> None:
    code = tmp_path / "code.fd"
    everything = {"qemu-img", "qemu-system-x86_64"}
    cases = {
        "": (set(), code),
        "apt install qemu-utils": (set(), code),
        "apt install qemu-system-x86 ovmf": ({"qemu-img"}, code),
        "apt install ovmf": (everything, tmp_path / "none"),
    }
    code.write_bytes(b"")
    del cases[""]
    for fix, (installed, ovmf) in cases.items():
        findings = judge_exports(lambda name, names=installed: name if name in names else None, ovmf)
        assert [finding.fix for finding in findings if finding.status is Status.WARN] == [fix]
    assert all(finding.status is Status.OK for finding in judge_exports(lambda name: name, code))
