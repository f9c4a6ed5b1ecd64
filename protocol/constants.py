"""Limits and defaults of the protocol, each with its reason.

Later versions may change defaults; limits that appear on the wire are part of the wire version.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# -- wire -----------------------------------------------------------------------------------------------------

WIRE_MAGIC = 0xD15C
WIRE_VERSION = 2
"""2 since control messages are signed and every datagram is authenticated; programs of other versions report both."""

DATA_HEADER_BYTES = 32
"""Header of a SYMBOL datagram: 2.2 % of 1440 payload bytes, and a multiple of 16, which keeps the rows of payload
aligned."""

CONTROL_DATAGRAM_BYTES_MAX = 1400
"""Fits every path that carries Ethernet, tunnels included, without fragments: a lost fragment would lose the whole
message, and reassembly buffers are an attack surface (RFC 8900)."""

MSGPACK_NESTING_MAX = 4
"""No diskcast message nests deeper; deeper nesting is an attempt to exhaust the decoder's stack."""

FEEDBACK_MAC_BYTES = 16
"""128-bit keyed BLAKE2s tag at the end of feedback datagrams: forging one takes 2^127 tries on average."""

RECEIVER_KEY_BYTES = 32
"""Longest key that BLAKE2s accepts."""

RUN_SECRET_BYTES = 32
"""Random secret of one run of a sender, from which its group keys derive: 256 bits are beyond any search."""

TAG_BYTES = 8
"""Tag of data and control datagrams: an outsider guesses one in 2^63 datagrams on average, 50,000 years of 10 Gbit/s.
Members know the group's key, so that a longer tag would protect nothing more."""

CONTROL_SIGNATURE_BYTES = 64
"""Ed25519 signature (RFC 8032) at the end of control datagrams."""

DATA_WINDOW_DATAGRAMS = 1 << 14
"""Latest datagrams of which each number is accepted once; older ones are dropped. Networks reorder by hundreds, and
2^14 numbers of eight bytes stay in the second-level cache."""

DATA_AHEAD_DATAGRAMS_MAX = 1 << 22
"""Numbers ahead of the latest signed one to accept: five seconds of 10 Gbit/s, in which the sender signs five. A member
that forges larger numbers can't spoil the count of losses."""

BLOCK_TAG_BYTES = 16
"""GCM's full tag, behind each block of an encrypted cast: a shorter one would save 8 bytes of 256 KiB."""

# -- FEC ------------------------------------------------------------------------------------------------------

SOURCE_SYMBOLS_MAX = 224
"""Largest k: leaves every block at least 31 repair symbols of GF(2^8)'s 255."""

SYMBOLS_MAX = 255
"""Largest n: distinct encoding symbols of a block. esi 0..254 fit one octet and leave 255 for "empty"."""

ESI_NONE = 255
"""Marks an empty slot of a block under assembly."""

SYMBOL_BYTES_MIN = 64
"""A cache line; smaller symbols would be mostly headers."""

SYMBOL_BYTES_MAX = 8928
"""A jumbo frame (MTU 9000 - 20 IPv4 - 8 UDP - 32 header = 8940), rounded down to a multiple of 32, the widest vector
that the FEC kernels load."""

IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
UDP_HEADER_BYTES = 8

ETHERNET_MTU_BYTES = 1500
"""Packets of this size pass every Ethernet link, and hardware receives them also with a smaller MTU, which limits only
what is sent (IEEE 802.3)."""

# -- image ----------------------------------------------------------------------------------------------------

BLOCK_BYTES_MIN = 64 * KIB
BLOCK_BYTES_MAX = 4 * MIB
BLOCK_BYTES_DEFAULT = 256 * KIB
"""183 symbols of 1440 bytes: fits k <= 224 at MTU 1500. It compresses 4 % worse than 1 MiB, but repairs, deltas and
buffers are four times finer."""

BLOCK_COUNT_MAX = 2**28
"""64 TiB of 256 KiB blocks. The manifest of that many rows has 17.25 GiB; it is read piece by piece, never held."""

IMAGE_BYTES_MAX = 64 * TIB
"""More than the largest disk; sums of two offsets fit 64 bits with room to spare."""

IMAGE_NAME_BYTES_MAX = 64
"""The name is sent in every ANNOUNCE and is a metric's label."""

METADATA_BYTES_MAX = 64 * KIB
"""The metadata is decoded as a whole, in memory."""

HASH_BYTES = 32
"""BLAKE3's digest."""

# -- default addresses ----------------------------------------------------------------------------------------

GROUP_IPV4_DEFAULT = "239.255.68.67"
"""In the IPv4 local scope 239.255.0.0/16 (RFC 2365): never forwarded beyond the site, whatever its TTL."""

GROUP_IPV6_DEFAULT = "ff12::d15c"
"""Transient, link-local scope (RFC 4291 section 2.7)."""

DATA_PORT_DEFAULT = 7410
"""UDP port of the multicast group."""

CONTROL_PORT_DEFAULT = 7411
"""TCP port of the control API. Feedback datagrams arrive at the UDP port of the same number: one number to open in a
firewall."""

MULTICAST_TTL_DEFAULT = 1
"""Multicast stays on the local network unless the operator decides otherwise."""

# -- session --------------------------------------------------------------------------------------------------

RECEIVER_COUNT_MAX = 1024
"""Receivers of one cast: bounds the sender's state, the labels of its metrics and the NACK load."""

ANNOUNCE_INTERVAL_S = 1.0
"""A booting agent waits half a second on average, for 200 bytes per second."""

FLUSH_INTERVAL_MIN_S = 0.02
"""FLUSH repeats every 2 GRTT, but no faster than this: each one makes the whole room answer."""

FLUSH_INTERVAL_MAX_S = 1.0
"""The interval grows up to this while no receiver answers."""

EOT_COUNT = 5
"""Copies of the end of transmission: at 20 % loss all five get lost once in 3,000 casts, and then the receiver's
own timeout ends the cast."""

EOT_INTERVAL_S = 0.1
"""Spreads the copies over half a second: a burst of losses doesn't take them all."""

REPORT_INTERVAL_S = 0.1
"""Interval of a small group: the sampling interval of rate control."""

REPORT_EARLY_INTERVAL_S = 0.02
"""A receiver whose buffers fill reports early, but no more often than this: at 4 Gbit/s, 100 ms are 50 MB, half of
the buffers."""

REPORT_EARLY_FILL_STEP = 0.15
"""A receiver reports early when the fill of its buffers grew by this share since its last report."""

REPORT_EARLY_RATE_MAX = 1000.0
"""Early reports per second of the whole group: all receivers behind a full link notice it at the same time."""

REPORT_GROUP_RATE_MAX = 200.0
"""Reports per second of the whole group: bounds the sender's work on feedback; the interval grows with the group."""

REPORT_INTERVAL_MIN_S = REPORT_EARLY_INTERVAL_S
"""Shortest interval that a receiver accepts from its sender."""

REPORT_INTERVAL_MAX_S = 30.0
"""Even in a large group and a slow cast the operator sees news of each machine twice a minute."""

REPORT_RATE_SHARE_MAX = 0.005
"""Share of the cast's rate that reports may take; NACKs may take as much before feedback exceeds 1 %."""

REPORT_WIRE_BYTES = 190
"""Size of a REPORT with its Ethernet, IP and UDP headers, rounded up."""

REPORTS_PER_TIMEOUT = 4
"""Report intervals of silence after which a receiver is lost, where that is longer than the timeout."""

RECEIVER_TIMEOUT_S = 10.0
"""Silence after which a receiver is lost: a hundred missed reports in a small group."""

PROGRESS_TIMEOUT_S = 30.0
"""Time for which a sender that is heard serves a receiver nothing, until the receiver gives up: more than any number of
lost NACKs and repairs explains, and no longer than it waits for a silent sender."""

RECEIVER_PROGRESS_TIMEOUT_S = 600.0
"""Time without progress after which the sender gives up a receiver that is still heard: twice as long as an agent waits
for one call of its disk, so that an agent gives up first and says why."""

RESTART_QUESTION_INTERVAL_S = 5.0
"""Least time between two questions to the control API about a restart that an unauthenticated datagram suggests: an
attacker causes at most one request per machine in that time."""

SENDER_TIMEOUT_S = 30.0
"""Silence after which a receiver stops waiting for its sender: long enough to restart a sender by hand with a prepared
command, short enough that a room doesn't hang."""

DISCOVERY_TIMEOUT_S = 60.0
"""Time that an agent waits for a first ANNOUNCE: the operator may start the sender after the agents."""

DISCOVERY_SETTLE_S = 2.5
"""Time that an agent listens for other casts after the first ANNOUNCE: two and a half announce intervals. The operator
must choose between two casts on one group, never chance."""

EXPECTED_WAIT_S = 180.0
"""Time beyond a cast's limit for its first machine, and after the end of its last one, while machines load the live
system or join: a slow one takes as long."""

MANIFEST_WAIT_S = 3.0
"""Longest time between a gathered room and the first image data. A receiver without its manifest can't place data, so
a short wait for late manifests saves sending blocks twice."""

# -- control API -----------------------------------------------------------------------------------------------

CONTROL_BODY_BYTES_MAX = 64 * KIB
"""Limit of request bodies without a need-bitmap; the largest, a completion report, has under 4 KiB."""

NEED_BODY_BYTES_MAX = 48 * MIB
"""Limit of request bodies with a need-bitmap: 2^28 bits are 32 MiB, and 43 MiB in base64 when zlib can't shorten
them."""

NAME_BYTES_MAX = 64
"""Longest name of a receiver: Linux host names have at most 64 octets (HOST_NAME_MAX)."""

ERROR_TEXT_BYTES_MAX = 2000
"""Longest error message of a receiver: room for a path and a sentence of advice."""

INVENTORY_ENTRIES_MAX = 32
INVENTORY_KEY_BYTES_MAX = 32
INVENTORY_VALUE_BYTES_MAX = 256
"""A machine's description of itself (model, serial numbers, disk): at most 9 MiB for 1024 receivers."""

HARDWARE_DEVICES_MAX = 16
"""Disks, network cards and disk controllers of a machine that its agent reports, of each kind: an inventory has at most
20 KiB."""

HARDWARE_TEXT_BYTES_MAX = 80
"""Longest model, serial number or driver of an inventory: ATA's models have 40 letters, NVMe's 40, SCSI's 24."""

MODALIAS_BYTES_MAX = 128
"""Longest text by which the kernel finds a device's driver; those of USB and PCI have about 60 letters."""

SECTOR_BYTES_MAX = 1 << 20
"""Largest sector of a disk that an inventory may state: the kernel's pages bound logical sectors, and optimal sizes of
arrays have hundreds of KiB."""

CHECK_IN_WAIT_S_MAX = 25.0
"""Longest time that a daemon holds a check-in open until there is a cast: proxies and firewalls forget connections
that are silent for 30 s."""

CHECK_IN_AFTER_S_MAX = 300.0
"""Longest pause between two check-ins: a machine that is silent for longer looks switched off."""

BOOT_STICK_LABEL = "DISKCAST"
"""Volume label of boot sticks and discs, by which the agent recognises them: they aren't disks to image."""

IDLE_RESTART_S_MAX = 86_400.0
"""Longest time that a machine, booted over the network, may wait with nothing to do: after a day it isn't a wait."""

HARDWARE_ADDRESSES_MAX = 16
"""Network cards of a machine: enough for a server with four ports, without their virtual functions."""

MACHINE_ID_BYTES_MAX = 64
"""Room for a UUID or a name."""

# -- NACK and GRTT (RFC 5401, RFC 5740) --------------------------------------------------------------------------

GRTT_INITIAL_S = 0.05
"""Group round-trip time before the first measurement."""

GRTT_MIN_S = 0.001
"""Below this the scheduling of threads, not the network, sets the round trip."""

GRTT_MAX_S = 5.0
"""Bounds the pauses that one slow report can cause."""

NACK_AT_ONCE_COUNT = 10
"""Receivers in a group that NACKs without back-off: waiting costs more than the few datagrams that it would save."""

NACK_CROWD = 5.0
"""NACKs that a large group may send for one common loss before the repair silences the rest."""

REPAIR_LATENCY_S = 0.02
"""Time from a NACK at the sender to its repair on the wire: batches that are already encoded are sent first."""

NACK_RETRY_GRTT_COUNT = 4.0
"""GRTTs without a repair after which a NACK is repeated."""

NACK_RETRY_MIN_S = 0.03
"""Shortest time between two NACKs for one block, whatever the GRTT: the repair latency and some reserve."""

NACK_RUNS_MAX = 100
"""Runs of blocks in one NACK: 1.3 KB of msgpack in the worst case, which keeps it under the control limit."""

NACK_BLOCKS_MAX = 4096
"""Blocks that the runs of one NACK name together: ten times what a receiver requests in a round, and a millisecond of
the sender's work."""

ECHOES_MAX = 512
"""Time stamps that the sender remembers as sent: ten seconds of FLUSH at its shortest interval."""

FEEDBACK_PER_S_MAX = 500.0
FEEDBACK_BURST = 250.0
"""Feedback datagrams of one receiver that the sender processes: twice what a receiver sends with losses in every
round. A hostile member costs the sender a twentieth of a core."""

REPAIR_SHARE_MAX = 0.25
"""Share of the rate that the repairs of one receiver may take while others wait for data: enough for a loss of a fifth
beyond parity. The rest is repaired when nothing else waits, so that a member that requests everything costs the room a
quarter of its rate."""

NACK_DATAGRAMS_PER_ROUND_MAX = 4
"""A receiver that lost everything requests the lowest blocks first and the others in later rounds."""

REORDER_DATAGRAM_COUNT = 128
"""Sequence numbers after a block's last symbol until its missing symbols count as lost: three super-datagrams of 44,
since networks reorder between queues, not across seconds."""

# -- poisoned blocks: members can forge symbols ------------------------------------------------------------------

SYMBOL_DIGEST_BYTES = 4
"""255 of them fit one datagram. A forger who doesn't know the salt in advance matches one in 2^32 symbols."""

DIGEST_SALT_BYTES = 16
"""Salt of a block's digests: never drawn twice, never guessed."""

POISONED_ROUNDS_MAX = 3
"""Requests of digests without success before a receiver fetches the block over the control API: more would only give
a forger, or a lossy network, more time."""

MANIFEST_HASH_BYTES = 16
MANIFEST_HASHES_MAX = 1024
"""Blocks of a manifest up to which a grant has a hash of each: 1 TiB of disk, 32 KB of JSON. The manifest of a larger
image is checked as a whole only."""

POISONED_BLOCKS_MAX = 64
"""Poisoned blocks in one report: more than a burst of losses and forgeries spoils at once."""

POISONED_POOL_SHARE = 0.5
"""Share of a receiver's buffers that may hold poisoned blocks: the other half continues to receive. Beyond it a
poisoned block is dropped and requested whole."""

DIGESTS_PER_S = 400
DIGESTS_BURST = 400
"""Digests of a cast: a millisecond of the encoder's time and 1.2 KB each. At 1 Gbit/s 450 blocks pass in a second."""

DIGESTS_MEMBER_PER_S = 100
DIGESTS_MEMBER_BURST = 200
"""A member that reports every block as poisoned costs a tenth of one processor."""

BLOCK_FETCH_BYTES_PER_S = 8 * MIB
BLOCK_FETCH_BURST_BYTES = 64 * MIB
"""Blocks of a cast that members fetch: a link of 1 Gbit/s keeps nine tenths for multicast."""

BLOCK_FETCH_MEMBER_BYTES_PER_S = MIB
BLOCK_FETCH_MEMBER_BURST_BYTES = 16 * MIB
"""Four blocks of the largest size at once, then one in four seconds: a forger can't make TLS carry the image."""

POISONED_RECORDS_MAX = 1024
"""Blocks of which a receiver remembers digests and rounds, 1 MiB; the oldest are forgotten."""

# -- rate -----------------------------------------------------------------------------------------------------

RATE_BYTES_PER_S_MIN = 125_000.0
"""1 Mbit/s, the floor of automatic rate control: a slower cast of gigabytes would not finish in time to be useful."""

RATE_BYTES_PER_S_START = 25_000_000.0
"""200 Mbit/s: safe on a gigabit classroom switch, and six doublings from 10 Gbit/s."""

RATE_BYTES_PER_S_MAX = 1_250_000_000.0
"""10 Gbit/s: the most that one sending thread can fill."""

QUEUE_DELAY_HIGH_S = 0.003
"""A queue that never becomes shorter than this means a full link: 375 KB at 1 Gbit/s, more than a burst of the sender
and less than the buffer of a cheap switch's port."""

BURST_SYMBOLS = 44
"""Datagrams of one super-datagram, which a full queue or a bridge drops as a whole."""

INTERLEAVE_BLOCKS = 4
INTERLEAVE_SYMBOLS = 11
"""Blocks that are sent together in stripes of this many symbols when losses come in bursts: a super-datagram holds a
stripe of each block, and its loss costs each block one stripe."""

PARITY_FRACTION_MAX = 0.30
"""Most proactive repair symbols per source symbol; beyond it NACKs are cheaper than parity for the whole group."""

STANDING_COUNT = 3
STANDING_INTERVAL_S = 0.1
"""A change of STANDING is sent this many times at this interval, and again with each ANNOUNCE."""

# -- stragglers ----------------------------------------------------------------------------------------------------

SLOW_BELOW_DEFAULT = 0.3
"""A receiver that sustains a third of the group's rate delays the group less than serving it separately would."""

SLOW_BELOW_MIN = 0.01
SLOW_BELOW_MAX = 0.9
"""Rates are measured to a few per cent: with a larger share, ordinary receivers would be stragglers at times."""

SLOW_FOR_S_DEFAULT = 10.0
"""Longer than a disk's cache flush or a student's log-on script."""

SLOW_FOR_S_MIN = 0.5
"""A few reports: fewer don't support a decision."""

SLOW_FOR_S_MAX = 3600.0
"""An hour: longer than almost every cast, so a receiver is never demoted in practice."""

# -- memory ---------------------------------------------------------------------------------------------------

ASSEMBLY_BYTES_DEFAULT = 96 * MIB
"""Buffers for blocks that are being received, decoded or written. Together with the interpreter, the receive slab and
the read-back buffers the agent stays below 300 MB."""

PLAN_SYMBOLS_MAX = 704
"""Symbols of one transmit batch: 16 super-datagrams of 44, a megabyte of frames."""
