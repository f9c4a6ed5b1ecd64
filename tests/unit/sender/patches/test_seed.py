"""Tests of seeds: cloud-init reads what the template declares, from a filesystem that every tool accepts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.constants import MIB
from protocol.errors import ConfigurationError
from sender.patches.fat_seed import build_fat_seed
from sender.patches.first_boot import FIRST_BOOT_DIRECTORY, script_files
from sender.patches.limits import SCRIPT_LOG_END_BYTES, SCRIPT_LOG_START_BYTES
from sender.patches.machine_settings import settings_of
from sender.patches.machines_file import PatchMachine
from sender.patches.seed import Seed, build_seed
from sender.patches.template import ScriptEntry, parse_template
from tests.support.patch_rooms import HASH, KEY, TEMPLATE

VARIABLES = {
    "name": "pc-07",
    "mac": "52:54:00:aa:bb:cc",
    "ip": "10.1.2.7",
    "position": "row 2",
    "join_password": "Geheim!7",
}


def seed_of(template: dict[str, Any], **variables: str) -> Seed:
    return build_seed(settings_of(parse_template(template), PatchMachine.of(VARIABLES | variables)))


FULL = tomllib.loads(TEMPLATE)
EVERY_OPTION = FULL | {
    "network": FULL["network"] | {"addresses": ["{{ ip }}/24", "fd00::7/64"], "gateway": "fd00::1"}
}


def test_yaml_reads_the_declared_values() -> None:
    files = seed_of(FULL).files
    config = yaml.safe_load(files["user-data"])
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert (config["hostname"], config["fqdn"]) == ("pc-07", "pc-07.lab.example")
    (user,) = config["users"]
    assert (user["ssh_authorized_keys"], user["hashed_passwd"], user["lock_passwd"]) == ([KEY], HASH, False)
    seat, secret, runner, join, late = config["write_files"]
    assert seat["content"] == "seat: row 2 \u2013 \u00fc \U0001f600 'it''s' \\ {{ braces }}\n"
    assert seat["defer"] is True
    assert (secret["content"], secret["permissions"]) == ("Geheim!7", "0600")
    assert [Path(entry["path"]).name for entry in (runner, join, late)] == ["run", "10-join", "50-late"]
    assert config["runcmd"] == [
        [runner["path"], "60", "10-join"],
        [runner["path"], "300", "50-late"],
        ["touch", "/run/own"],
    ]
    network = yaml.safe_load(files["network-config"])
    lan = network["ethernets"]["lan0"]
    assert (lan["match"], lan["addresses"]) == ({"macaddress": "52:54:00:aa:bb:cc"}, ["10.1.2.7/24"])
    meta = yaml.safe_load(files["meta-data"])
    assert (meta["local-hostname"], meta["instance-id"][:9]) == ("pc-07", "diskcast-")


def test_debian_generates_the_locale(tmp_path: Path) -> None:
    """Without its line, cloud-init's module fails: Debian's locale-gen ignores the name that it is given."""
    supported, listed = tmp_path / "SUPPORTED", tmp_path / "locale.gen"
    supported.write_text("de_DE.UTF-8 UTF-8\nde_DE ISO-8859-1\nde_DEXUTF-8 UTF-8\n")
    config = yaml.safe_load(seed_of(FULL | {"locale": "de_DE.UTF-8"}).files["user-data"])
    (command,) = config["bootcmd"]
    script = (
        command[5]
        .replace("/usr/share/i18n/SUPPORTED", str(supported))
        .replace("/etc/locale.gen", str(listed))
    )
    run = [*command[3:5], script, *command[6:]]
    subprocess.run(run, check=True)
    assert not listed.exists()
    listed.write_text("# de_DE.UTF-8 UTF-8\n")
    subprocess.run(run, check=True)
    assert listed.read_text() == "# de_DE.UTF-8 UTF-8\nde_DE.UTF-8 UTF-8\n"


def test_dhcp_leaves_the_network_to_cloud_init() -> None:
    assert set(seed_of({"hostname": "a", "network": {"mode": "dhcp"}}).files) == {"meta-data", "user-data"}


def test_cloud_init_runs_again_for_other_settings_only() -> None:
    assert seed_of(FULL).instance_id == seed_of(FULL).instance_id
    others = [seed_of(FULL, ip="10.1.2.8"), seed_of(FULL, machine_id="m1"), seed_of(FULL, join_password="x")]
    assert len({seed.instance_id for seed in [seed_of(FULL), *others]}) == 4


@pytest.mark.parametrize(
    "value",
    ["", "a: b", "- x", "{}", "# no", "'", '"', "\\", "%", "\u2603", "\u2028", "\t\n x \n", "yes", "0x1"],
)
def test_no_value_changes_the_structure(value: str) -> None:
    made = seed_of({"hostname": "a", "user_data": {"bootcmd": [["echo", value]]}})
    assert yaml.safe_load(made.files["user-data"])["bootcmd"] == [["echo", value]]


def test_settings_of_diskcast_are_not_overridden_silently() -> None:
    with pytest.raises(
        ConfigurationError, match=r"user_data.hostname, machine a: diskcast sets hostname too"
    ):
        seed_of({"hostname": "a", "user_data": {"hostname": "b"}})
    with pytest.raises(ConfigurationError, match="more than the 1 MiB of a seed"):
        seed_of({"hostname": "a", "files": [{"path": f"/{n}", "content": "x" * 60_000} for n in range(20)]})


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init isn't installed")
@pytest.mark.parametrize("template", [{"hostname": "a"}, FULL, EVERY_OPTION])
def test_cloud_init_accepts_the_user_data(template: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_bytes(seed_of(template).files["user-data"])
    command = ["cloud-init", "schema", "--config-file", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Valid cloud-config" in done.stdout


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init isn't installed")
@pytest.mark.parametrize("gateway", ["10.1.2.1", "fd00::1"])
@pytest.mark.parametrize(
    ("renderer", "route"),
    [
        # Without net-tools, as in Debian, a machine has no default route from `post-up route add`.
        ("eni", "    gateway {}"),
        ("netplan", "gateway{}: {}"),
        ("network-manager", "gateway={}"),
        ("networkd", "Gateway={}"),
    ],
)
def test_cloud_init_writes_the_network_of_each_system(
    renderer: str, route: str, gateway: str, tmp_path: Path
) -> None:
    path = tmp_path / "network-config"
    network = EVERY_OPTION["network"] | {"gateway": gateway}
    path.write_bytes(seed_of(FULL | {"network": network}).files["network-config"])
    command = ["cloud-init", "devel", "net-convert", "--network-data", path, "--kind", "yaml"]
    command += ["--output-kind", renderer, "--distro", "debian", "--directory", tmp_path / "out"]
    subprocess.run(command, capture_output=True, check=True)
    text = "".join(file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file())
    version = 6 if ":" in gateway else 4
    default = route.format(version, gateway) if renderer == "netplan" else route.format(gateway)
    for expected in ("10.1.2.7/24", "fd00::7/64", "lan0", "lab.example", default):
        assert expected in text
    assert "route add" not in text


_READ_BY_CLOUD_INIT = """
import json, sys
sys.path.insert(0, "/usr/lib/python3/dist-packages")
from cloudinit.helpers import Paths
from cloudinit.sources.DataSourceNoCloud import DataSourceNoCloud
source = DataSourceNoCloud({}, None, Paths({"cloud_dir": sys.argv[2], "run_dir": sys.argv[2]}))
source.seed_dirs = [sys.argv[1]]
found = source.get_data()
user_data = source.get_userdata_raw()
user_data = user_data.decode() if isinstance(user_data, bytes) else user_data
print(json.dumps([found, source.get_hostname().hostname, source.get_instance_id(), source.network_config, user_data]))
"""


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init isn't installed")
def test_cloud_init_finds_its_seed(tmp_path: Path) -> None:
    """The files take the whole way: through the filesystem, and through cloud-init's own data source."""
    seed, image, folder = seed_of(FULL), tmp_path / "seed.img", tmp_path / "seed"
    image.write_bytes(build_fat_seed(seed.files).ljust(4 * MIB, b"\0"))
    folder.mkdir()
    subprocess.run(["mcopy", "-i", image, "::*", folder], check=True)
    command = ["/usr/bin/python3", "-c", _READ_BY_CLOUD_INIT, folder, tmp_path / "cloud"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, hostname, instance_id, network, user_data = json.loads(done.stdout.splitlines()[-1])
    assert (found, hostname, instance_id) == (True, "pc-07", seed.instance_id)
    assert network["ethernets"]["lan0"]["addresses"] == ["10.1.2.7/24"]
    assert user_data.encode() == seed.files["user-data"]


# -- the filesystem -------------------------------------------------------------------------------------------

FILES = {
    "meta-data": b"m" * 100,
    "user-data": bytes(range(256)) * 200,
    "network-config": b"",
    "a name of more than two parts.txt": b"x" * 4096,
}


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("files", [{}, FILES, {"user-data": b"x" * MIB}])
def test_every_tool_accepts_the_filesystem(
    files: dict[str, bytes], sector_bytes: int, tmp_path: Path
) -> None:
    image = tmp_path / "seed.img"
    image.write_bytes(build_fat_seed(files, sector_bytes).ljust(4 * MIB, b"\0"))
    check = subprocess.run(["fsck.fat", "-n", image], capture_output=True, text=True, check=False)
    assert (check.returncode, check.stderr) == (0, ""), check.stdout
    probe = subprocess.run(["blkid", "-p", "-o", "export", image], capture_output=True, text=True, check=True)
    facts = dict(line.split("=", 1) for line in probe.stdout.splitlines())
    assert (facts["LABEL"], facts["TYPE"], facts["VERSION"]) == ("CIDATA", "vfat", "FAT12")
    for name, content in files.items():
        found = subprocess.run(["mtype", "-i", image, f"::{name}"], capture_output=True, check=True)
        assert found.stdout == content


def test_equal_files_in_any_order_give_equal_bytes() -> None:
    assert build_fat_seed(FILES) == build_fat_seed(dict(reversed(FILES.items())))


def test_files_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the files of a seed have"):
        build_fat_seed({"user-data": bytes(4 * MIB)})


# -- scripts of the first boot --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "log"),
    [
        ("echo good; echo bad >&2", "0", b"good\nbad\n"),
        ("echo oops; exit 7", "7", b"oops\n"),
        ("echo waiting; sleep 100", "124", b"waiting\n"),
        (
            "yes | head -c 10000000; echo the end",
            "0",
            b"y\n" * (SCRIPT_LOG_START_BYTES // 2)
            + b"y\n" * ((SCRIPT_LOG_END_BYTES - 8) // 2)
            + b"the end\n",
        ),
        ("sleep 100 & echo $! >left; echo started", "0", b"started\n"),
    ],
    ids=["works", "fails", "hangs", "prints 10 MB", "leaves a process"],
)
def test_a_script_leaves_its_code_and_bounded_output(
    script: str, code: str, log: bytes, tmp_path: Path
) -> None:
    entries = script_files((ScriptEntry("job", f"#!/bin/sh\n{script}\n"),))
    for entry in entries:
        path = tmp_path / Path(str(entry["path"])).name
        path.write_text(str(entry["content"]).replace(FIRST_BOOT_DIRECTORY, str(tmp_path)))
        path.chmod(0o700)
    subprocess.run([tmp_path / "run", "1", "50-job"], check=True, timeout=60)
    assert (tmp_path / "50-job.exit").read_text() == f"{code}\n"
    assert (tmp_path / "50-job.log").read_bytes() == log
    assert (tmp_path / "50-job.log").stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} - {"left"} == {
        "run",
        "50-job",
        "50-job.exit",
        "50-job.log",
    }
    if (left := tmp_path / "left").exists():
        os.kill(int(left.read_text()), signal.SIGTERM)
