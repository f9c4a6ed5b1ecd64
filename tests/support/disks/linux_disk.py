"""A disk of a Linux system that was in use: its files are made by hand, its filesystems by mke2fs and mkswap."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Final

import numpy as np

from protocol.constants import KIB, MIB

ROOT_UUID: Final = "11111111-2222-3333-4444-555555555555"
SWAP_UUID: Final = "66666666-7777-8888-9999-aaaaaaaaaaaa"
ROOT_MIB: Final = 16
VAR_MIB: Final = 12
SWAP_MIB: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Traces:
    """Files of one machine with content that occurs nowhere else, by path, and files that every clone needs."""

    personal: dict[str, bytes]
    common: dict[str, bytes]

    @property
    def secrets(self) -> dict[str, bytes]:
        """Starts of the personal contents, for a search in a whole disk."""
        return {name: content[:48] for name, content in self.personal.items()}


def make_traces(seed: int) -> Traces:
    """Return the files of a machine; files of several blocks, of one block and of a few bytes are among them."""
    rng = np.random.default_rng(seed)

    def secret(size: int) -> bytes:
        return b"SECRET " + rng.bytes(size).hex().encode()

    personal = {
        "etc/machine-id": rng.bytes(16).hex().encode() + b"\n",
        "var/lib/dbus/machine-id": rng.bytes(16).hex().encode() + b"\n",
        "etc/ssh/ssh_host_rsa_key": secret(1300),
        "etc/ssh/ssh_host_rsa_key.pub": secret(300),
        "etc/ssh/ssh_host_ed25519_key": secret(200),
        "etc/udev/rules.d/70-persistent-net.rules": secret(80),
        "etc/NetworkManager/system-connections/wired.nmconnection": b"[ethernet]\nmac-address=52:54:00:12:34:56\n#"
        + secret(40),
        "etc/netplan/50-cloud-init.yaml": b"# made by cloud-init " + secret(40),
        "root/.bash_history": secret(5000),
        "home/ada/.bash_history": secret(100),
        "home/ada/.python_history": secret(30),
        "home/ada/.local/share/fish/fish_history": secret(30),
        "var/lib/dhcp/dhclient.eth0.leases": secret(500),
        "var/lib/NetworkManager/internal-0815-eth0.lease": secret(50),
        "var/lib/NetworkManager/secret_key": secret(50),
        "var/lib/cloud/instances/i-0815/user-data.txt": secret(700),
        "var/lib/cloud/data/instance-id": secret(40),
        "var/lib/systemd/random-seed": secret(256),
        "var/log/syslog": secret(150_000),
        "var/account/pacct": secret(40),
        "var/lib/misc/random-seed": secret(256),
        "var/log/audit/audit.log": secret(400),
        "var/log/lastlog": secret(30),
        "root/original-ks.cfg": secret(300),
        "var/log/apt/history.log": secret(3000),
        "var/log/journal/0123456789abcdef0123456789abcdef/system.journal": secret(60_000),
        "var/mail/ada": secret(900),
        "var/crash/dump.1": secret(900),
        "var/tmp/session/cookie": secret(100),
        'tmp/with "quotes" and blanks': secret(100),
    }
    common = {
        "etc/os-release": b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Test GNU/Linux 12"\n',
        "etc/debian_version": b"12.7\n",
        "bin/sh": b"#",
        "etc/hostname": b"golden\n",
        "etc/ssh/sshd_config": b"PermitRootLogin no\n",
        "etc/NetworkManager/system-connections/vpn.nmconnection": b"[vpn]\n",
        "etc/netplan/01-site.yaml": b"match:\n  macaddress: 52:54:00:12:34:56\n",
        "home/ada/thesis.txt": rng.bytes(100_000),
        "var/lib/cloud/seed/nocloud/meta-data": b"instance-id: golden\n",
        "var/lib/cloud/scripts/per-boot/site.sh": b"#!/bin/sh\n",
        "var/lib/app/state": rng.bytes(9000),
    }
    return Traces(personal, common)


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def make_linux_disk(
    path: Path, traces: Traces, *, kind: str = "ext4", with_var: bool = False, mke2fs: tuple[str, ...] = ()
) -> None:
    """Write a disk with a root filesystem, a used swap partition and, with ``with_var``, a filesystem for ``/var``."""
    tree, var = path.with_name("tree"), path.with_name("var-tree")
    shutil.rmtree(tree, ignore_errors=True)
    fstab = f"UUID={ROOT_UUID} / {kind} defaults 0 1\nUUID={SWAP_UUID} none swap sw 0 0\n"
    fstab += "LABEL=var /var ext4 defaults 0 2\n" if with_var else "/swap.img none swap sw 0 0\n"
    write_tree(tree, {**traces.personal, **traces.common, "etc/fstab": fstab.encode()})
    (tree / "etc/udev/rules.d/80-net.rules").symlink_to("/dev/null")
    (tree / "var/log/README").symlink_to("../../usr/share/doc/systemd/README.logs")
    (tree / "tmp/link").symlink_to("SECRET short link")
    (tree / "var/spool").mkdir()
    (tree / "var/spool/mail").symlink_to("../mail")
    if with_var:
        shutil.move(tree / "var", var)
        (tree / "var").mkdir()
    else:
        _make_swap(tree / "swap.img", 256 * KIB)
    with path.open("wb") as file:
        file.truncate((ROOT_MIB + SWAP_MIB + VAR_MIB + 3) * MIB)
    # The swap partition isn't aligned with the blocks of an image.
    swap_start = (1 + ROOT_MIB) * MIB + 68 * KIB
    var_start = (2 + ROOT_MIB + SWAP_MIB) * MIB
    table = ["label: gpt", f"start=1MiB, size={ROOT_MIB}MiB, type=L"]
    table.append(f"start={swap_start // 512}, size={SWAP_MIB * MIB // 512}, type=S")
    if with_var:
        table.append(f"start={var_start // MIB}MiB, size={VAR_MIB}MiB, type=L")
    subprocess.run(["sfdisk", "-q", path], input="\n".join(table).encode(), check=True)
    _place(path, MIB, _make_ext(tree, kind, ROOT_MIB, "root", mke2fs, "-U", ROOT_UUID))
    swap = path.with_name("swap.raw")
    _make_swap(swap, SWAP_MIB * MIB, "-U", SWAP_UUID, "-L", "swap")
    _place(path, swap_start, swap)
    if with_var:
        _place(path, var_start, _make_ext(var, "ext4", VAR_MIB, "var", mke2fs))


def _make_ext(
    tree: Path, kind: str, size_mib: int, label: str, extra: tuple[str, ...], *options: str
) -> Path:
    raw = tree.with_suffix(".raw")
    options = (
        "-F",
        "-b",
        "4096",
        *(() if kind == "ext2" else ("-J", "size=4", "-N", "512")),
        *extra,
        *options,
    )
    arguments = ["mke2fs", "-q", "-t", kind, "-L", label, *options, "-d", tree, raw, f"{size_mib}M"]
    subprocess.run(arguments, capture_output=True, check=True)
    return raw


def _make_swap(path: Path, size_bytes: int, *options: str) -> None:
    """Make a swap area full of memory pages."""
    path.write_bytes(b"SECRET memory page..".ljust(64, b"m") * (size_bytes // 64))
    path.chmod(0o600)
    subprocess.run(["mkswap", "-q", *options, path], check=True)


def _place(disk: Path, offset: int, part: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(part.read_bytes())
    part.unlink()


def extract(disk: Path, start_bytes: int, size_bytes: int, output: Path) -> Path:
    """Copy a partition out of a disk."""
    with disk.open("rb") as file:
        file.seek(start_bytes)
        output.write_bytes(file.read(size_bytes))
    return output
