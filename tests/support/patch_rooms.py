"""A room's template, its machines and a golden image with a seed partition, for tests of machine patches."""

from __future__ import annotations

import subprocess
from pathlib import Path

from protocol.constants import MIB
from protocol.patch.machine_patch import MachinePatch
from sender.imaging.pack import PackOptions, pack_image
from tests.support.patches import contents_of

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJyTb0IjUg4lRlhHZsYlHrVsvcNHY2kHnGEd1BcxAPWr teacher"
HASH = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0.WiB9W.zEaKlOBL35rC"

TEMPLATE = f"""
hostname = "{{{{ name }}}}"
domain = "lab.example"
locale = "de_DE.UTF-8"
timezone = "Europe/Vienna"
secret_variables = ["join_password"]

[[users]]
name = "teacher"
full_name = "Teacher"
groups = ["sudo"]
ssh_keys = ["{KEY}"]
password_hash = "{HASH}"

[network]
mode = "static"
addresses = ["{{{{ ip }}}}/24"]
gateway = "10.1.2.1"
dns = ["10.1.2.1"]
search = ["lab.example"]

[[files]]
path = "/etc/seat.conf"
owner = "teacher:teacher"
content = "seat: {{{{ position }}}} \u2013 \u00fc \U0001f600 'it''s' \\\\ {{{{{{{{ braces }}}}\\n"

[[files]]
path = "/etc/join.secret"
content = "{{{{ join_password }}}}"
secret = true

[[first_boot]]
name = "late"
content = "#!/bin/sh\\ntrue\\n"

[[first_boot]]
name = "join"
content = "#!/bin/sh\\necho {{{{ name }}}}\\n"
order = 10
timeout_s = 60

[user_data]
package_update = true
runcmd = [["touch", "/run/own"]]
"""


def machines_csv(count: int) -> str:
    """Return the machines pc-01 to pc-N."""
    lines = ["Name,MAC,ip,position,join password"]
    for number in range(1, count + 1):
        high, low = divmod(number, 250)
        lines.append(
            f"pc-{number:02},52:54:00:00:{high:02x}:{low:02x},10.1.{2 + high}.{low},row {number // 6},Geheim!{number}"
        )
    return "\n".join(lines) + "\n"


def write_room(folder: Path, machine_count: int, *, template: str = TEMPLATE) -> tuple[Path, Path]:
    """Write the template and the machines; return their paths."""
    (folder / "lab.toml").write_text(template, encoding="utf-8")
    (folder / "lab.csv").write_text(machines_csv(machine_count), encoding="utf-8")
    return folder / "lab.toml", folder / "lab.csv"


def make_golden_image(folder: Path, *, seed_partition: bool = True) -> Path:
    """Return an image of a disk with one partition, and a seed partition behind it."""
    disk = folder / "golden.raw"
    with disk.open("wb") as file:
        file.truncate(40 * MIB)
    guids = ("--disk-guid", "6F0D8F5E-9B7C-4F53-8E15-3A6E4E0C1D11")
    guids += ("--partition-guid", "1:77777777-1111-4111-8111-111111111111")
    subprocess.run(["sgdisk", "--new=1:1M:20M", *guids, disk], capture_output=True, check=True)
    with disk.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"the golden system" * 1000)
    options = PackOptions(seed_partition=seed_partition)
    return pack_image(disk, folder / "golden.dci", options).path


def seed_content(patch: MachinePatch) -> bytes:
    """Return the seed partition's filesystem, if all of its used blocks are in the patch."""
    blocks = contents_of(patch)
    return b"".join(blocks[block] for block in sorted(blocks)).ljust(4 * MIB, b"\0")
