"""The live system: everything between a netbooted machine's kernel and its agent.

::

    files/initrd/init       first stage: processor, memory, checksum of root.sqfs, mounts      (busybox sh)
    files/root/init         process 1 of the system in root.sqfs                               (busybox sh)
    receiver.live.boot      devices, settings, network, daemon, then the agent or the menu

Each reason for which a machine can't be imaged is one line on every console, from one table
(:mod:`receiver.live.messages`). After it the machine restarts, so that a repaired room heals without anybody at it.
The builder of the boot medium copies the two folders of ``files/``, as they are, over the initrd and the root
filesystem; everything in them is executable but ``checks.sh``.
"""
