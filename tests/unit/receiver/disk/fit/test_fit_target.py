"""Fitting an image to its target: the tools that the doctor checks."""

from __future__ import annotations

from receiver.disk.fit.fit_target import fit_tools


def test_every_purpose_has_its_package() -> None:
    tools = fit_tools()
    assert {package for _, _, package in tools} == {
        "fdisk", "gdisk", "e2fsprogs", "xfsprogs", "btrfs-progs", "ntfs-3g", "efibootmgr",
    }  # fmt: skip
    assert all(purpose and isinstance(installed, bool) for purpose, installed, _ in tools)
