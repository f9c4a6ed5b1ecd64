"""The ``diskcast`` command line: a table of its commands and their modules."""

from __future__ import annotations

from typing import Final, NoReturn

from protocol.program.command_line import Implementation, program, run_program

COMMANDS: Final = {
    "pack": Implementation("sender.imaging.image_commands:pack", "Pack a disk into an image."),
    "inspect": Implementation("sender.imaging.image_commands:inspect", "Show an image's metadata."),
    "verify": Implementation("sender.imaging.image_commands:verify", "Check every byte of an image or disk."),
    "unpack": Implementation(
        "sender.imaging.image_commands:unpack", "Write an image to a disk or file, without a network."
    ),
    "export": Implementation(
        "sender.export.export_command:export", "Export an image to qcow2, VMDK, VHDX, VDI, VHD or raw."
    ),
    "vm": Implementation(
        "sender.export.vm_command:vm", "Start a virtual machine on an image; changes are discarded."
    ),
    "nbd": Implementation(
        "sender.export.nbd_command:nbd", "Serve an image as a read-only disk, for single files."
    ),
    "sign": Implementation("sender.imaging.sign_command:sign", "Sign an image."),
    "patches": Implementation(
        "sender.patches.patches_command:patches", "Build patches that give each machine its own settings."
    ),
    "keygen": Implementation("sender.identity.keygen_command:keygen", "Make a key that signs images."),
    "trust": Implementation("sender.identity.trust_command:trust", "Manage the keys that a machine trusts."),
    "send": Implementation("sender.send.command:send", "Cast an image to a room of machines."),
    "serve": Implementation(
        "sender.serve.serve_command:serve", "Run the daemon: images, rooms, casts, dashboard, API."
    ),
    "images": Implementation("sender.console.images:images", "Manage the daemon's image library."),
    "rooms": Implementation("sender.console.rooms:rooms", "Manage rooms, which are named sets of machines."),
    "machines": Implementation("sender.console.machines:machines", "Manage machines, online or not."),
    "captures": Implementation(
        "sender.console.captures:captures", "Show and control captures of machines' disks."
    ),
    "casts": Implementation(
        "sender.console.casts:casts", "Plan, control and watch casts of images to machines."
    ),
    "schedules": Implementation(
        "sender.console.schedules:schedules", "Manage schedules, which plan casts repeatedly."
    ),
    "dashboard": Implementation(
        "sender.console.dashboard:dashboard", "Print a link that opens the dashboard, logged in."
    ),
    "tokens": Implementation("sender.console.tokens:tokens", "Manage API tokens."),
    "history": Implementation(
        "sender.console.history:history", "List which image went to which machine, with the result."
    ),
    "database": Implementation(
        "sender.store.database_command:database", "Check, back up and restore the daemon's database."
    ),
    "certificate": Implementation(
        "sender.serve.certificate_command:certificate", "Show and rotate the certificate of this machine."
    ),
    "netboot": Implementation(
        "sender.netboot.command:netboot", "Boot bare machines into the agent, from network or USB stick."
    ),
    "doctor": Implementation(
        "sender.doctor.command:doctor", "Check this machine's requirements as sender or daemon."
    ),
    "demo": Implementation("sender.demo.command:demo", "Run a whole cast on this machine."),
}
"""Each module is imported when it is used: ``diskcast inspect`` doesn't wait for a web framework."""


@program("diskcast", COMMANDS)
def cli() -> None:
    """Image a room of machines at once: pack a golden disk image, multicast it, verify every byte."""


def main() -> NoReturn:
    """Run ``diskcast``."""
    run_program(cli)
