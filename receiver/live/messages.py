"""The messages of the live system: one line for each reason for which a machine can't be imaged.

After a fatal one a second line says whether a disk was written (:mod:`receiver.live.disk_state`), and when the machine
restarts. The scripts of ``files/`` print some of them, which a test compares with this table. From it
``docs/generate.py`` makes the table of docs/how-to/netboot-troubleshooting.md.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

CONSOLE_PREFIX: Final = "diskcast: "
"""Start of every line on a console, where the kernel prints too."""

TEXT_CHARS_MAX: Final = 400
"""Longest message: five lines of a screen, in a photo that a technician sends."""

_CONTROL: Final = re.compile(r"[^\x20-\x7e\u00a0-\uffff]+")


@dataclasses.dataclass(frozen=True, slots=True)
class BootMessage:
    """A kind of message.

    Attributes:
        template: the text, with the names of facts in braces.
        cause: explanation for the documentation.
        fix: advice for the documentation.
        fatal: the machine restarts after it; otherwise the start continues.
    """

    template: str
    cause: str
    fix: str
    fatal: bool = True

    def text(self, **facts: object) -> str:
        """Return the line without its prefix; facts from outside can't control a terminal."""
        safe = {name: _CONTROL.sub("?", str(fact)) for name, fact in facts.items()}
        return self.template.format(**safe)[:TEXT_CHARS_MAX]

    def matches(self, line: str) -> bool:
        """Return whether ``line``, without its prefix, is such a message."""
        pattern = "".join(
            ".*" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", self.template)
        )
        return re.fullmatch(pattern, line) is not None


class BootStopError(Exception):
    """A reason to stop; the message is the line to show."""


# -- the first stage (files/initrd/) -------------------------------------------------------------------------------

OLD_PROCESSOR: Final = BootMessage(
    "this processor is too old: it has no {flags} (x86-64-v2 needed)",
    "The machine, or the model of its virtual processor, is older than about 2009; the agent needs these instructions.",
    "Choose another processor model for a virtual machine (`-cpu max`, “host”). Such a real machine can't be imaged.",
)
TOO_LITTLE_MEMORY: Final = BootMessage(
    "too little memory: {found} MB, {needed} MB needed",
    "The kernel, the compressed live system and the agent don't fit. A live system with firmware needs more.",
    "Add memory. Without firmware (`diskcast netboot build --no-firmware`) less is enough.",
)
ROOT_MISSING: Final = BootMessage(
    "the initrd is cut short: root.sqfs is missing",
    "Only the start of the initrd arrived, or memory was short when the kernel unpacked it.",
    "Compare the sizes of the boot server's file and of the boot medium's; add memory.",
)
ROOT_CUT: Final = BootMessage(
    "the initrd is cut short: {found} of {expected} bytes of root.sqfs",
    "The download of the initrd ended early, or memory was short when the kernel unpacked it.",
    "Boot again. If it stays, compare the boot server's file with the boot medium's, and add memory.",
)
ROOT_DAMAGED: Final = BootMessage(
    "root.sqfs is damaged: SHA-256 {found}, expected {expected}",
    "The live system was altered on its way, in the machine's memory, or on the boot server.",
    "Boot again. If it stays, build the boot medium again; if only this machine says so, test its memory.",
)
ROOT_WITHOUT_CHECKSUM: Final = BootMessage(
    "root.sqfs has no checksum: root.sha256 is missing",
    "The initrd isn't one of `diskcast netboot build`.",
    "Build the boot medium again.",
)
ROOT_NOT_MOUNTED: Final = BootMessage(
    "root.sqfs can't be mounted: this kernel has no driver for it",
    "Kernel and initrd don't belong together.",
    "Copy both files of the boot medium to the boot server.",
)

# -- process 1 (files/root/usr/lib/diskcast/ending.sh) -------------------------------------------------------------

PROGRAM_KILLED: Final = BootMessage(
    "the live system's program was killed: there may be too little memory",
    "The kernel ended it, most often because memory was short.",
    "Add memory; 512 MB suffice for a cast.",
)
PROGRAM_FAILED: Final = BootMessage(
    "the live system's program failed (exit code {code})",
    "A defect of diskcast; the lines above it show the place.",
    "Report it with a photo of the screen.",
)

# -- hardware (receiver.live.hardware_findings) --------------------------------------------------------------------

DEVICES_MISSED: Final = BootMessage(
    "drivers may be missing: {reason}",
    "udev, which loads them, couldn't be started or didn't finish within a minute.",
    "If a disk or a card is missing afterwards, report the line; disconnect devices that aren't needed.",
    fatal=False,
)
NO_NETWORK_DRIVER: Final = BootMessage(
    "no driver for network card PCI {id}",
    "The live system's kernel doesn't know this card.",
    "Use a newer suite (`diskcast netboot build --suite`), not `--cloud` for real machines, or another card.",
    fatal=False,
)
NO_STORAGE_DRIVER: Final = BootMessage(
    "no driver for disk controller PCI {id}",
    "The live system's kernel doesn't know this controller: its disks can't be written.",
    "Use a newer suite, not `--cloud` for real machines, or switch the controller from RAID to AHCI.",
    fatal=False,
)
DRIVER_FAILED: Final = BootMessage(
    "driver {module} doesn't accept {kind} PCI {id}",
    "The driver is there, but didn't start: firmware may be missing, or the card is defective or switched off.",
    "Look for a line about firmware; look into the kernel's log (`diskcast.mode=shell`, then `dmesg`).",
    fatal=False,
)
FIRMWARE_MISSING: Final = BootMessage(
    "firmware {file} missing for {device}",
    "The driver needs a file that the live system doesn't have; many cards work without it, some don't.",
    "Boot with the firmware of the boot medium; don't build it with `--no-firmware`. A newer suite may have the file.",
    fatal=False,
)
UNKNOWN_PARAMETER: Final = BootMessage(
    "unknown boot parameter {name} ignored",
    "The boot service is newer than the live system, or the name has a typo.",
    "Build the boot medium again, or correct the boot loader's entry.",
    fatal=False,
)

# -- settings (receiver.live.settings) -----------------------------------------------------------------------------

INVALID_SETTING: Final = BootMessage(
    "{error}",
    "A boot parameter, or the configuration in the live system, has no valid value; the line names it.",
    "Correct the boot loader's entry, or build the boot medium again.",
)
FOREIGN_PIN: Final = BootMessage(
    "wrong pin: {pin} on the kernel command line isn't among those of this live system",
    "The boot script names another daemon than the live system was built for, or an attacker wrote it.",
    "If the daemon has a new certificate, build the boot medium again with its `--pin`.",
)
FOREIGN_KEY: Final = BootMessage(
    "wrong image key: {key} on the kernel command line isn't among those of this live system",
    "The boot script trusts another signer than the live system was built for, or an attacker wrote it.",
    "Build the boot medium again with `--trust-key`, or remove `diskcast.trust` from the boot loader's entry.",
)
NO_SERVER: Final = BootMessage(
    "no daemon is named: give diskcast.server and diskcast.pin",
    "Neither the kernel command line nor the live system names a daemon.",
    "Boot by `diskcast netboot serve`, or build the boot medium with `--server` and `--pin`.",
)
NO_PIN: Final = BootMessage(
    "no pin: nothing was given to recognise the daemon by; give diskcast.pin",
    "The live system must not believe any program that answers.",
    "Build the boot medium with `--pin`, which `diskcast certificate show` prints.",
)

# -- network (receiver.live.network_setup) -------------------------------------------------------------------------

NO_CARD: Final = BootMessage(
    "no network card",
    "The kernel found none: there may be no driver for it (a line above says so), or it is switched off.",
    "Switch the card on in the firmware; see the lines about drivers.",
)
NO_LINK: Final = BootMessage(
    "no link on {cards}",
    "No cable, a dead switch port, or a card that doesn't agree with the switch on a speed.",
    "Check cable and switch port.",
)
NO_DHCP: Final = BootMessage(
    "no DHCP on {cards}",
    "No DHCP server answered within a minute: wrong VLAN, an exhausted range of addresses, or a switch port that "
    "forwards only after a long time (spanning tree).",
    "Enable PortFast on the switch's ports; check the DHCP server's log; give diskcast.vlan if the port is tagged.",
)
NETWORK_COMMAND: Final = BootMessage(
    "the network can't be set up: {error}",
    "A VLAN or a bond can't be created.",
    "Check diskcast.vlan and diskcast.bond.",
)

# -- daemon and agent (receiver.live.boot) -------------------------------------------------------------------------

NO_DAEMON: Final = BootMessage(
    "no daemon at {reason}",
    "The network works, but nothing answers at the daemon's address within half a minute.",
    "Start the daemon; open its port (7400) in firewalls; check that the rooms can route to it.",
)
WRONG_PIN: Final = BootMessage(
    "wrong pin: {reason}",
    "Another program answers at the daemon's address, or the daemon has a new certificate.",
    "Compare with `diskcast certificate show` on the daemon, and build the boot medium again if it was renewed.",
)
NO_TOKEN: Final = BootMessage(
    "this machine has no token to enrol with",
    "It didn't boot by a boot service, which would have got a boot token for it, and none is in the live system.",
    "Boot by `diskcast netboot serve`, or put a token for enrolment into /etc/diskcast/token of a signed live system.",
)
NOT_ADMITTED: Final = BootMessage(
    "this machine isn't admitted: {reason}",
    "The boot token was used already or is too old, the machine was revoked, or another agent is active as it.",
    "Boot again: each boot gets a new token. See the machine's page in the dashboard and the audit log.",
)
AGENT_FAILED: Final = BootMessage(
    "the agent stopped: {error}",
    "An error that waiting doesn't repair; the line names it.",
    "See [troubleshooting](troubleshooting.md).",
)
MENU_FAILED: Final = BootMessage(
    "the menu stopped: {error}",
    "No console is connected, or the machine can't be restarted; the message has the cause.",
    "Connect a screen or a serial line and restart the machine.",
)

MESSAGES: Final = tuple(value for value in vars().copy().values() if isinstance(value, BootMessage))
"""All messages, in the order of a start."""
