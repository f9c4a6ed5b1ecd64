"""A program for a network namespace: sets the network up as the live system does, and prints the outcome as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from protocol.control.boot_parameters import parse_boot_parameters_untrusted
from receiver.live.messages import BootStopError
from receiver.live.network_setup import (
    LEASE_SCRIPT,
    NetworkPaths,
    NetworkPatience,
    NetworkSetup,
    machine_name,
)

SCRIPT = Path(__file__).parents[4] / "receiver/live/files/root" / LEASE_SCRIPT.relative_to("/")


def card_tree(folder: Path, names: list[str]) -> Path:
    """Return a folder like /sys in which virtual interfaces are cards."""
    for name in names:
        card = folder / "class/net" / name
        (card / "device").mkdir(parents=True)
        for attribute in ("address", "type", "carrier"):
            (card / attribute).symlink_to(f"/sys/class/net/{name}/{attribute}")
    (folder / "class/net/bonded").mkdir(parents=True)
    (folder / "class/net/bonded/carrier").symlink_to("/sys/class/net/bonded/carrier")
    return folder


def main() -> None:
    folder, busybox, parameters, patience, *names = sys.argv[1:]
    work = Path(folder)
    paths = NetworkPaths(
        system=card_tree(work / "sys", names),
        leases=work / "leases",
        script=SCRIPT,
        busybox=Path(busybox),
        resolver=work / "resolv.conf",
    )
    steps: list[str] = []
    setup = NetworkSetup(
        parse_boot_parameters_untrusted(parameters),
        steps.append,
        paths,
        NetworkPatience(**json.loads(patience)),
    )
    outcome: dict[str, object] = {"steps": steps}
    try:
        lease = setup.run()
    except BootStopError as stop:
        outcome["stop"] = str(stop)
    else:
        outcome |= {"lease": dataclasses.asdict(lease), "name": machine_name(lease)}
        outcome["addresses"] = os.popen(f"ip -4 -o address show dev {lease.interface}").read()
        outcome["routes"] = os.popen("ip route").read()
        outcome["resolver"] = (work / "resolv.conf").read_text()
    finally:
        setup.close()
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
