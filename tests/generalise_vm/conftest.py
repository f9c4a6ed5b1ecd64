"""The run with virt-sysprep's virtual machine is collected for ``make generalise-vm`` only."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("DISKCAST_GENERALISE_VM") else ["test_*.py"]
