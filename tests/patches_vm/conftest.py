"""Shared by the runs with virtual machines: they are collected for ``make patches-vm`` only."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("DISKCAST_PATCHES_VM") else ["test_*.py"]
