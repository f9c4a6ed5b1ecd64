"""Tests of templates: a mistake is found before anything is built, and its message leads to the place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigurationError
from sender.patches.machine_settings import MachineSettings, settings_of
from sender.patches.machines_file import PatchMachine, load_machines, read_machines
from sender.patches.seed import build_seed
from sender.patches.template import load_template, parse_template
from tests.support.patch_rooms import HASH, KEY, TEMPLATE

MACHINE = PatchMachine.of(
    {
        "name": "pc-07",
        "mac": "52-54-00-AA-BB-CC",
        "ip": "10.1.2.7",
        "position": "row 2",
        "join_password": "Geheim!7",
        "serial": "X; reboot",
    }
)


def settings(**fields: Any) -> MachineSettings:
    return settings_of(parse_template({"hostname": "{{ name }}", **fields}), MACHINE)


def test_a_machine_gets_its_values() -> None:
    made = settings_of(parse_template(tomllib.loads(TEMPLATE)), MACHINE)
    assert (made.hostname, made.domain, made.timezone) == ("pc-07", "lab.example", "Europe/Vienna")
    assert made.network is not None
    assert (made.network.mac, made.network.addresses) == ("52:54:00:aa:bb:cc", ("10.1.2.7/24",))
    assert made.files[0].content == "seat: row 2 \u2013 \u00fc \U0001f600 'it''s' \\ {{ braces }}\n"
    assert made.files[1].mode == "0600"
    assert [script.name for script in made.first_boot] == ["join", "late"]


def test_no_representation_shows_a_secret() -> None:
    template = parse_template(tomllib.loads(TEMPLATE))
    made = settings_of(template, MACHINE)
    shown = "".join(map(repr, (template, made, MACHINE, build_seed(made))))
    assert "Geheim" not in shown
    assert HASH not in shown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hostnam": "x"}, r"hostnam: the template has no such key: did you mean hostname\?"),
        ({"hostname": 7}, "hostname: text is expected"),
        ({"hostname": "a\x07"}, "hostname: it has control characters"),
        (
            {"users": [{"name": "a", "password": "x"}]},
            r"users\[0\].password: .* did you mean password_hash\?",
        ),
        ({"users": [{}]}, r"users\[0\].name: it is missing"),
        ({"users": [{"name": f"u{n}"} for n in range(33)]}, "users: a list of at most 32"),
        ({"users": "teacher"}, "users: a list of at most 32"),
        ({"files": [{"path": "/a", "content": "b", "secret": 1}]}, r"files\[0\].secret: true or false"),
        (
            {"first_boot": [{"name": "a", "content": "#!/b", "timeout_s": 0}]},
            r"\[0\].timeout_s: .* 1 to 3600",
        ),
        (
            {"first_boot": [{"name": "a", "content": "#!/b", "order": True}]},
            r"first_boot\[0\].order: integer",
        ),
        ({"network": "dhcp"}, "network: a table is expected"),
        ({"secret_variables": ["A B"]}, r"secret_variables\[0\]: 'A B' can't be the name"),
        ({"user_data": {"a": float("nan")}}, "user_data.a: cloud-config can't have"),
        ({"user_data": {"a": [[[[[[[[[1]]]]]]]]]}}, "nested at most 8 deep"),
        ({"user_data": {"a": list(range(3000))}}, "at most 2000 values"),
    ],
)
def test_a_wrong_template_is_refused_with_its_place(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_template({"hostname": "{{ name }}", **fields})


STATIC = {"mode": "static", "addresses": ["10.1.2.3/24"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"hostname": "{{ nam }}"},
            r"hostname, machine pc-07: there is no variable 'nam': did you mean name\?",
        ),
        (
            {"hostname": "{{ hall }}"},
            "there is no variable 'hall': the variables are asset_tag, ip, join_password",
        ),
        ({"hostname": "{{ room }}"}, "the variable 'room' is empty: fill its column"),
        ({"hostname": "{{ name | upper }}"}, "`{{` starts no variable"),
        ({"hostname": "pc_07"}, "'pc_07' can't be used: a host name has 1 to 63 letters"),
        ({"hostname": "pc.lab"}, "no dots"),
        ({"hostname": "x" * 64}, "1 to 63 letters"),
        ({"hostname": "123"}, "not digits alone"),
        ({"domain": "lab..example"}, "domain, machine pc-07: 'lab..example'"),
        ({"locale": "de DE"}, "write it as de_DE.UTF-8"),
        ({"timezone": "../../etc/passwd"}, "write it as Europe/Vienna"),
        ({"users": [{"name": "Teacher"}]}, r"users\[0\].name, machine pc-07: 'Teacher'"),
        ({"users": [{"name": "a"}, {"name": "a"}]}, r"users\[1\], machine pc-07: 'a' is users\[0\] too"),
        ({"users": [{"name": "a", "groups": ["sudo,root"]}]}, r"users\[0\].groups\[0\]"),
        ({"users": [{"name": "a", "full_name": "x:0"}]}, "without colons"),
        ({"users": [{"name": "a", "shell": "bash"}]}, "absolute path"),
        (
            {"users": [{"name": "a", "ssh_keys": ["ssh-rsa AAAA"]}]},
            r"ssh_keys\[0\].*give the line of a .pub file",
        ),
        ({"users": [{"name": "a", "ssh_keys": [KEY.replace("ed25519", "rsa", 1)]}]}, r"ssh_keys\[0\]"),
        ({"users": [{"name": "a", "ssh_keys": [f"{KEY}\nssh-rsa x"]}]}, r"ssh_keys\[0\]"),
        ({"network": {"mode": "wifi"}}, "network.mode, machine pc-07: 'wifi'.*dhcp or static"),
        ({"network": {"mode": "static"}}, "network.addresses.*needs one"),
        ({"network": {"mode": "dhcp", "dns": ["1.1.1.1"]}}, "network.dns.*remove it"),
        ({"network": STATIC | {"addresses": ["10.1.2.3"]}}, r"network.addresses\[0\].*with its prefix"),
        ({"network": STATIC | {"gateway": "router"}}, "network.gateway.*IP address"),
        ({"network": STATIC | {"mac": "{{ name }}"}}, "network.mac.*52:54"),
        ({"network": STATIC | {"interface": "eth0;x"}}, "network.interface"),
        ({"files": [{"path": "etc/x", "content": ""}]}, r"files\[0\].path.*absolute"),
        ({"files": [{"path": "/etc/../root/x", "content": ""}]}, r"files\[0\].path"),
        ({"files": [{"path": "/x", "content": "", "mode": "0888"}]}, r"files\[0\].mode.*octal"),
        ({"files": [{"path": "/x", "content": "", "owner": "root"}]}, r"files\[0\].owner.*user:group"),
        ({"files": [{"path": "/x", "content": "a" * 70_000}]}, r"files\[0\].content.*more than 64 KiB"),
        ({"files": [{"path": "/x", "content": ""}, {"path": "/x", "content": ""}]}, r"files\[1\].*too"),
        ({"first_boot": [{"name": "a", "content": "echo"}]}, r"first_boot\[0\].content.*#!/bin/sh"),
        ({"first_boot": [{"name": "A", "content": "#!/bin/sh"}]}, r"first_boot\[0\].name"),
        (
            {"first_boot": [{"name": "a", "content": "#!/bin/sh\necho {{ serial }}"}]},
            "the variable 'serial' has letters that a script could execute",
        ),
        ({"user_data": {"x": ["{{ no }}"]}}, r"user_data.x\[0\], machine pc-07"),
    ],
)
def test_a_wrong_value_names_place_machine_and_fix(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"hostname": "{{ join_password }}"},
        {"users": [{"name": "a", "password_hash": "{{ join_password }}"}]},
        {"files": [{"path": "{{ join_password }}", "content": ""}]},
        {"first_boot": [{"name": "a", "content": "#!/bin/sh\n{{ join_password }}"}]},
    ],
)
def test_no_error_shows_a_secret(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(secret_variables=["join_password"], **fields)
    assert "machine pc-07" in str(caught.value)
    assert "Geheim" not in str(caught.value)


def test_a_password_is_no_hash_and_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="never the password itself") as caught:
        settings(users=[{"name": "a", "password_hash": "hunter2"}])
    assert "hunter2" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't read the template .*none\.toml"):
        load_template(tmp_path / "none.toml")
    for content in (b"hostname = ", b"hostname = '\xff'", b"a = " + b"[" * 5000, b"#" * (1 << 20) + b"#"):
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"bad\.toml"):
            load_template(path)
    with pytest.raises(ConfigurationError, match="can't read the machines"):
        load_machines(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"name\npc-\xe4\n")
    with pytest.raises(ConfigurationError, match="save it as UTF-8"):
        load_machines(tmp_path / "latin.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_machines_come_from_any_spreadsheet(separator: str) -> None:
    lines = [["Name", "MAC", "Seat No"], ["pc-01", "52-54-00-AA-BB-CC", "1"], [], ["pc-02", "", "2"]]
    first, second = read_machines("\r\n".join(separator.join(cells) for cells in lines))
    assert (first.name, first.machine_id, first.variables["mac"]) == ("pc-01", "pc-01", "52:54:00:aa:bb:cc")
    assert (second.variables["seat_no"], second.variables["mac"]) == ("2", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no machines"),
        ("name,ip\n", "no machines"),
        ("mac,ip\n", "line 1: no column is called name"),
        ("name,IP Addr,ip_addr\n", "line 1: two columns are called 'ip_addr'"),
        ("name,1st\n", "line 1: '1st' can't name a column"),
        ("name\n../x\n", r"line 2: '../x' can't name a machine"),
        ("name\npc-01\nPC-01\n", "line 3: the name 'pc-01' is in line 2 too"),
        ("name,machine_id\na,m1\nb,m1\n", "line 3: the machine_id 'm1' is in line 2 too"),
        ("name,mac\na,52:54:00:00:00:01\nb,52-54-00-00-00-01\n", "line 3: the mac .* is in line 2 too"),
        ("name,mac\na,52:54\n", "line 2: the machine a has an invalid mac"),
        ("name,x\na,1,2\n", "line 2: 3 cells under 2 columns"),
        ('name,x\na,"1\n2"\n', "line 3, column x: at most 4096 bytes, and no control"),
        (f"name,x\na,{'y' * 5000}\n", "line 2, column x: at most 4096 bytes"),
        ('name\n"a\n', "this isn't CSV"),
        ("name\n" + "\n".join(f"pc-{n}" for n in range(5001)), "line 5002: more than 5000 machines"),
    ],
)
def test_a_wrong_line_of_machines_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_machines(text)
