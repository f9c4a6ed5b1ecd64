"""Both doctors check the real system: they find its problems, and only those, each with a fix."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import DoctorFoundProblemsError
from protocol.fec.gf256 import NumpyKernel
from protocol.fec.isal import best_kernel
from protocol.program.findings import (
    BridgeFacts,
    Finding,
    MediumFacts,
    SocketBuffer,
    Status,
    fail,
    judge_bridge,
    judge_erasure_coding,
    judge_medium,
    judge_memory,
    judge_reach,
    judge_socket_buffer,
    ok,
    plain_lines,
    require_no_failure,
    summary,
    warn,
)
from sender.doctor.sender_doctor import judge_foreign_images, judge_free_space, judge_queue_disciplines
from tests.support.network.lab import LIMIT_S, Program, diskcast
from tests.support.network.ports import free_port_range

REPOSITORY = Path(__file__).resolve().parents[4]
DATA_PORT, CONTROL_PORT = free_port_range(2)
SENDER = [sys.executable, "-m", "sender", "doctor", "--control", "127.0.0.1:0", "--port", str(DATA_PORT)]
AGENT = [sys.executable, "-m", "receiver", "doctor", "--port", str(DATA_PORT)]


def _run(command: list[str]) -> tuple[int, dict[str, dict[str, str]], dict[str, object]]:
    """Return the exit code, the findings by check, and the result line."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert lines[-1]["event"] == "result"
    assert all(line["event"] == "finding" for line in lines[:-1])
    return done.returncode, {line["check"]: line for line in lines[:-1]}, lines[-1]


# -- the real system, without root ------------------------------------------------------------------------------


def test_sender_doctor_receives_its_own_datagrams_on_the_loopback_interface() -> None:
    code, findings, result = _run([*SENDER, "--interface", "lo"])
    assert (code, result["ok"]) == (0, True)
    assert findings["multicast on lo"]["status"] == "ok"
    assert findings["send offload on lo"]["status"] == "ok"
    assert findings["reach of lo"]["status"] == "warn", "a cast on lo reaches no room, and that must be said"
    assert result["warnings"] == [name for name, line in findings.items() if line["status"] == "warn"]


def test_agent_doctor_reads_by_the_fast_path_and_opens_the_target(tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    code, findings, result = _run([*AGENT, "--interface", "lo", "--target", str(target)])
    assert (code, result["ok"]) == (0, True)
    assert "recvmmsg" in findings["multicast on lo"]["detail"]
    assert "came as one message" in findings["receive offload"]["detail"]
    assert findings[f"target {target}"]["status"] == "ok"
    assert not target.exists(), "the doctor changes nothing"


def test_agent_doctor_leaves_an_existing_target_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    target.write_bytes(b"keep me")
    code, _, _ = _run([*AGENT, "--interface", "lo", "--target", str(target)])
    assert code == 0
    assert target.read_bytes() == b"keep me"


@pytest.mark.parametrize("command", [SENDER, AGENT], ids=["sender", "agent"])
def test_an_unknown_interface_is_a_failure(command: list[str]) -> None:
    code, findings, result = _run([*command, "--interface", "nosuch0"])
    assert code == DoctorFoundProblemsError.exit_code == result["exit_code"]
    assert result["error"] == "1 check failed: interface nosuch0"
    finding = findings["interface nosuch0"]
    assert finding["status"] == "fail"
    assert "ip -brief address" in finding["fix"]


def test_a_taken_control_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, findings, _ = _run([*SENDER, "--interface", "lo", "--control", f"127.0.0.1:{port}"])
    assert code == DoctorFoundProblemsError.exit_code
    assert findings[f"control port {port} of 127.0.0.1"]["status"] == "fail"


def test_a_data_port_that_another_program_holds_exclusively_fails() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 0))
        port = holder.getsockname()[1]
        code, findings, _ = _run([*AGENT, "--interface", "lo", "--port", str(port)])
    assert code == DoctorFoundProblemsError.exit_code
    assert [name for name, line in findings.items() if line["status"] == "fail"] == [
        f"group 239.255.68.67 port {port}"
    ]


def test_a_target_that_no_image_can_be_written_to_fails(tmp_path: Path) -> None:
    code, findings, _ = _run([*AGENT, "--interface", "lo", "--target", str(tmp_path)])
    assert code == DoctorFoundProblemsError.exit_code
    finding = findings[f"target {tmp_path}"]
    assert "directory" in finding["detail"]
    assert finding["fix"].startswith("choose another: diskcast-agent disks")


def test_agent_doctor_finds_a_sender_and_reaches_it(tmp_path: Path) -> None:
    source, image = tmp_path / "disk.raw", tmp_path / "disk.dci"
    source.write_bytes(bytes(range(256)) * 4096)
    with Program(diskcast("pack", source, "-o", image, "--name", "lab", "--json")) as packer:
        assert packer.wait(LIMIT_S) == 0, packer.describe()
    address = f"127.0.0.1:{CONTROL_PORT}"
    send = ["send", image, "--interface", "lo", "--port", str(DATA_PORT), "--control", address, "--json"]
    with Program(diskcast(*send)) as sender:
        sender.wait_event("cast_started", LIMIT_S)
        for _ in range(10):  # it listens only briefly, and a busy machine may send no ANNOUNCE in that time
            code, findings, _ = _run([*AGENT, "--interface", "lo"])
            if "answers" in findings["sender"]["detail"]:
                break
    assert code == 0
    assert findings["sender"]["detail"] == f"'lab' is announced by 127.0.0.1, and https://{address} answers"


def test_without_json_a_pipe_gets_plain_lines() -> None:
    done = subprocess.run(
        [*SENDER, "--interface", "lo"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.startswith("ok   interface lo: up, 127.0.0.1, MTU ")
    assert " checks: " in done.stdout.splitlines()[-1]
    assert done.stderr == ""


# -- the real system, in a network namespace -------------------------------------------------------------------


def _in_namespace(
    script: str, command: list[str]
) -> tuple[int, dict[str, dict[str, str]], dict[str, object]]:
    """Run the doctor in a fresh network namespace that ends with it, after ``script`` prepared it."""
    shell = f'set -e; ip link set lo up; {script}; exec "$@"'
    return _run(["unshare", "--net", "sh", "-c", shell, "sh", *command])


DROP_INPUT = (
    "nft add table inet t; nft add chain inet t input '{ type filter hook input priority 0; policy drop; }'"
)
DROP_OUTPUT = (
    "nft add table inet t; nft add chain inet t output '{ type filter hook output priority 0; policy drop; }'"
)
TWO_INTERFACES = (
    "ip link add a0 type veth peer name b0; ip link set a0 up; ip link set b0 up; "
    "ip address add 10.0.0.1/24 dev a0"
)


@pytest.mark.needs_root
@pytest.mark.parametrize("firewall", [DROP_INPUT, DROP_OUTPUT], ids=["input", "output"])
@pytest.mark.parametrize("command", [SENDER, AGENT], ids=["sender", "agent"])
def test_a_firewall_is_found(command: list[str], firewall: str) -> None:
    code, findings, _ = _in_namespace(firewall, [*command, "--interface", "lo"])
    assert code == DoctorFoundProblemsError.exit_code
    finding = findings["multicast on lo"]
    assert finding["status"] == "fail"
    assert "firewall" in finding["detail"]


@pytest.mark.needs_root
@pytest.mark.parametrize("command", [SENDER, AGENT], ids=["sender", "agent"])
def test_an_interface_that_is_down_fails(command: list[str]) -> None:
    script = f"{TWO_INTERFACES}; ip link set a0 down"
    code, findings, _ = _in_namespace(script, [*command, "--interface", "a0"])
    assert code == DoctorFoundProblemsError.exit_code
    assert "down" in findings["interface a0"]["detail"]


@pytest.mark.needs_root
def test_the_queue_disciplines_are_those_that_the_kernel_has() -> None:
    tbf = "tc qdisc replace dev a0 root tbf rate 1gbit burst 64k latency 20ms"
    shaped = f"{TWO_INTERFACES}; tc qdisc add dev a0 clsact; {tbf}"
    code, findings, _ = _in_namespace(shaped, [*SENDER, "--interface", "a0"])
    assert code == 0
    assert findings["queue discipline of a0"]["detail"].startswith("tbf: ")
    queues = TWO_INTERFACES.replace("add a0", "add a0 numtxqueues 2") + "; tc qdisc replace dev a0 root mq"
    code, findings, _ = _in_namespace(queues, [*SENDER, "--interface", "a0"])
    assert code == 0
    assert "mq" not in findings["queue discipline of a0"]["detail"], "what queues is below it"


@pytest.mark.needs_root
def test_strict_reverse_path_filtering_is_a_warning() -> None:
    script = f"{TWO_INTERFACES}; echo 1 >/proc/sys/net/ipv4/conf/a0/rp_filter"
    code, findings, _ = _in_namespace(script, [*AGENT, "--interface", "a0"])
    assert code == 0
    finding = findings["reverse path filter of a0"]
    assert finding["status"] == "warn"
    assert "rp_filter=2" in finding["fix"]


@pytest.mark.needs_root
def test_without_an_interface_all_usable_ones_and_bridges_are_checked() -> None:
    bridge = (
        "ip link add br0 type bridge mcast_snooping 1 mcast_querier 0; ip link set br0 up; "
        "ip address add 10.0.1.1/24 dev br0; mount -t sysfs sysfs /sys"
    )
    command = [sys.executable, "-m", "sender", "doctor", "--control", ":0"]
    shell = f'set -e; ip link set lo up; {TWO_INTERFACES}; {bridge}; exec "$@"'
    code, findings, _ = _run(["unshare", "--net", "--mount", "sh", "-c", shell, "sh", *command])
    assert code == 0
    assert {"interface a0", "interface br0"} <= findings.keys()
    assert "interface lo" not in findings
    finding = findings["IGMP on bridge br0"]
    assert (finding["status"], finding["fix"]) == ("warn", "ip link set br0 type bridge mcast_querier 1")


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux's setpriv isn't installed")
def test_small_socket_buffers_are_a_warning_without_cap_net_admin() -> None:
    limit_bytes = int(Path("/proc/sys/net/core/rmem_max").read_text())
    if limit_bytes >= 16 * MIB:
        pytest.skip("net.core.rmem_max is large enough here")
    drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    code, findings, _ = _run([*drop, *AGENT, "--interface", "lo"])
    assert code == 0
    assert findings["receive buffer"]["status"] == "warn"
    assert findings["receive buffer"]["fix"].startswith("sysctl -w net.core.rmem_max=")


# -- judgements ------------------------------------------------------------------------------------------------


def test_a_wireless_or_slow_link_is_a_warning() -> None:
    def status(*, wireless: bool = False, speed: int = 1000, half: bool = False) -> list[Status]:
        return [finding.status for finding in judge_medium(MediumFacts("if0", wireless, speed, half))]

    assert status() == [Status.OK]
    assert status(wireless=True) == [Status.WARN]
    assert status(speed=100) == [Status.WARN]
    assert status(half=True) == [Status.WARN]
    assert status(speed=0) == [], "virtual links don't say"


def test_fq_is_explained_and_another_discipline_is_no_problem() -> None:
    def detail(*kinds: str) -> str:
        (finding,) = judge_queue_disciplines("if0", kinds)
        assert finding.status is Status.OK
        return finding.detail

    assert detail("fq").startswith("fq: the kernel also paces the bursts")
    assert detail("mq", "fq", "fq") == detail("fq")
    assert detail("fq_codel").startswith("fq_codel: only the sender paces bursts")
    assert detail("mq", "fq", "pfifo_fast").startswith("fq, pfifo_fast: only the sender paces")
    assert judge_queue_disciplines("if0", ()) == [], "the kernel doesn't say"


def test_reach() -> None:
    assert judge_reach("eth0", "192.0.2.1") == []
    assert judge_reach("lo", "::1")[0].status is Status.WARN


def test_buffers_compare_what_was_granted_without_the_kernels_doubling() -> None:
    buffer = SocketBuffer("receive buffer", "net.core.rmem_max", "datagrams are lost")
    assert judge_socket_buffer(buffer, granted_bytes=2 * MIB, wanted_bytes=MIB).status is Status.OK
    finding = judge_socket_buffer(buffer, granted_bytes=2 * MIB - 2, wanted_bytes=MIB)
    assert (finding.status, finding.fix) == (Status.WARN, "sysctl -w net.core.rmem_max=1048576")


def test_too_little_memory_warns_before_it_fails() -> None:
    assert judge_memory(300 * MIB, 300 * MIB).status is Status.OK
    assert judge_memory(299 * MIB, 300 * MIB).status is Status.WARN
    assert judge_memory(100 * MIB, 300 * MIB).status is Status.FAIL


def test_a_snooping_bridge_needs_a_querier() -> None:
    assert judge_bridge(BridgeFacts("br0", snooping=False, querier=False)).status is Status.OK
    assert judge_bridge(BridgeFacts("br0", snooping=True, querier=True)).status is Status.OK
    assert judge_bridge(BridgeFacts("br0", snooping=True, querier=False)).status is Status.WARN


def test_the_slow_erasure_code_is_a_warning() -> None:
    assert judge_erasure_coding(NumpyKernel()).status is Status.WARN
    assert judge_erasure_coding(best_kernel()).detail == best_kernel().name


def test_the_report_names_failures_and_fixes() -> None:
    findings = [
        ok("a", "fine"),
        warn("b", "slow", "faster"),
        fail("c", "broken", "fix it"),
        fail("d", "no", "do"),
    ]
    assert list(plain_lines(findings))[3:5] == ["fail c: broken", "       fix: fix it"]
    assert summary(findings) == "4 checks: 1 ok, 1 warning, 2 failures"
    with pytest.raises(DoctorFoundProblemsError, match="2 checks failed: c, d"):
        require_no_failure(findings)
    require_no_failure(findings[:2])


def test_a_problem_without_a_fix_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Finding("check", Status.FAIL, "broken")


# -- free space -----------------------------------------------------------------------------------------------


def test_filesystems_without_their_tools_are_a_warning_with_the_packages_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "protocol.packing.filesystems.free_space.find_tool",
        lambda name: None if "btrfs" in name else f"/sbin/{name}",
    )
    known, btrfs, *_ = judge_free_space()
    assert "ext4" in known.detail
    assert "btrfs" not in known.detail
    assert (btrfs.status, btrfs.fix) == (Status.WARN, "apt install btrfs-progs")


def test_missing_tools_for_foreign_images_and_a_missing_sandbox_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (finding,) = judge_foreign_images()
    assert (finding.status, "qemu-img" in finding.detail) == (Status.OK, True)
    monkeypatch.setattr(
        "sender.doctor.sender_doctor.find_tool", lambda name: None if name in {"qemu-img", "xz"} else name
    )
    (finding,) = judge_foreign_images()
    assert (finding.status, finding.fix) == (Status.WARN, "apt install qemu-utils xz-utils")
    monkeypatch.setattr("protocol.program.sandbox.landlock_version", lambda: -1)
    (finding,) = judge_foreign_images()
    assert (finding.status, "Landlock" in finding.detail) == (Status.WARN, True)


@pytest.mark.parametrize(
    ("uid", "loops", "status", "words"),
    [(0, False, Status.WARN, "loop devices"), (1000, True, Status.OK, "as root")],
)
def test_requirements_for_free_space_in_partitions_are_shown(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uid: int,
    loops: bool,
    status: Status,
    words: str,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("sender.doctor.sender_doctor._LOOP_CONTROL", tmp_path if loops else tmp_path / "none")
    finding = judge_free_space()[-1]
    assert finding.status is status
    assert words in finding.detail
