"""Every limit and default of the protocol, each with its reason.

Later versions may change defaults; limits that appear on the wire are part of the wire version.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# -- wire -----------------------------------------------------------------------------------------------------

WIRE_MAGIC = 0xD15C
WIRE_VERSION = 1

DATA_HEADER_BYTES = 32
"""Header of a SYMBOL datagram: small beside 1440 payload bytes (2.2 %), and a multiple of 16 so that payload
rows keep their alignment."""

CONTROL_DATAGRAM_BYTES_MAX = 1400
"""Control datagrams fit every path that carries Ethernet, tunnels included, without fragments: a lost fragment
would lose the whole message and reassembly buffers are an attack surface (RFC 8900)."""

MSGPACK_NESTING_MAX = 4
"""Deeper nesting than any message of ours has is an attempt to exhaust the decoder's stack."""

FEEDBACK_MAC_BYTES = 16
"""128-bit keyed BLAKE2s tag at the end of feedback datagrams: forging one needs 2^127 tries on average."""

RECEIVER_KEY_BYTES = 32

# -- FEC ------------------------------------------------------------------------------------------------------

SOURCE_SYMBOLS_MAX = 224
"""k: leaves at least 31 repair symbols of GF(2^8)'s 255 to every block."""

SYMBOLS_MAX = 255
"""n: distinct encoding symbols of a block; esi 0..254 fit one octet and leave 255 free to mean "empty"."""

ESI_NONE = 255

SYMBOL_BYTES_MIN = 64
SYMBOL_BYTES_MAX = 8928
"""A jumbo frame (MTU 9000 - 20 IPv4 - 8 UDP - 32 header = 8940), rounded down to a multiple of 32, which is the
widest vector that the FEC kernels load."""

IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
UDP_HEADER_BYTES = 8

# -- image ----------------------------------------------------------------------------------------------------

BLOCK_BYTES_MIN = 64 * KIB
BLOCK_BYTES_MAX = 4 * MIB
BLOCK_BYTES_DEFAULT = 256 * KIB
"""183 symbols of 1440 bytes: fits k <= 224 at MTU 1500; compresses 4 % worse than 1 MiB, but repairs, deltas and
buffers are four times finer."""

BLOCK_COUNT_MAX = 2**28
"""64 TiB of 256 KiB blocks; the manifest of that many rows is 18 GiB and is never held, only read as it is needed."""

IMAGE_BYTES_MAX = 64 * TIB

IMAGE_NAME_BYTES_MAX = 64
"""An image's name travels in every ANNOUNCE and is a metric's label."""

METADATA_BYTES_MAX = 64 * KIB
"""What an image says about its source beside its blocks: decoded whole, so it is bounded."""

HASH_BYTES = 32

# -- default addresses ----------------------------------------------------------------------------------------

GROUP_IPV4_DEFAULT = "239.255.68.67"
"""In the IPv4 local scope 239.255.0.0/16 (RFC 2365): never forwarded beyond the site, whatever the TTL."""

GROUP_IPV6_DEFAULT = "ff12::d15c"
"""Transient, link-local scope (RFC 4291 section 2.7)."""

DATA_PORT_DEFAULT = 7410
CONTROL_PORT_DEFAULT = 7411
"""The control API's TCP port; feedback datagrams come to the UDP port of the same number, so that a firewall
needs one rule with one number."""

MULTICAST_TTL_DEFAULT = 1

# -- session --------------------------------------------------------------------------------------------------

RECEIVER_COUNT_MAX = 1024
"""Receivers of one cast: bounds the sender's state, its metrics' labels and the NACK load."""

ANNOUNCE_INTERVAL_S = 1.0
"""An agent that boots waits half a second on average; 200 bytes a second cost nothing."""

FLUSH_INTERVAL_MIN_S = 0.02
"""FLUSH repeats at 2 GRTT but no faster than this: every repeat asks the whole room to answer."""

FLUSH_INTERVAL_MAX_S = 1.0

EOT_COUNT = 5
"""Copies of the end of transmission: at 20 % loss all five are lost once in 3,000 casts, and then the
receiver's own deadline ends it."""

EOT_INTERVAL_S = 0.1

REPORT_INTERVAL_S = 0.1
"""Reports of a small group; it is the control loop's sampling interval."""

REPORT_EARLY_INTERVAL_S = 0.02
"""A receiver whose buffers fill doesn't wait for its turn, but reports no more often than this: at 4 Gbit/s 100 ms
are 50 MB, half of the buffers."""

REPORT_EARLY_FILL_STEP = 0.15
"""Share of the buffers by which they must have filled since the last report to report early."""

REPORT_EARLY_RATE_MAX = 1000.0
"""Early reports per second of the whole group: what everybody notices at once needn't be told by everybody at once."""

REPORT_GROUP_RATE_MAX = 200.0
"""Reports per second of the whole group: bounds the sender's feedback work; the interval grows with the group."""

REPORT_INTERVAL_MAX_S = 30.0
"""However large the group and slow the cast, an operator wants to hear of a machine twice a minute."""

REPORT_RATE_SHARE_MAX = 0.005
"""Share of the cast's rate that reports may take; NACKs have as much again before feedback passes 1 %."""

REPORT_WIRE_BYTES = 190
"""A REPORT on the wire with its Ethernet, IP and UDP headers, rounded up."""

REPORTS_PER_TIMEOUT = 4
"""A receiver is lost when it stays silent for this many of its reports, where that is longer than the timeout."""

RECEIVER_TIMEOUT_S = 10.0
"""A receiver that sent nothing for this long is lost: a hundred missed reports in a small group."""

SENDER_TIMEOUT_S = 30.0
"""A receiver that heard nothing for this long gives up: long enough to restart a sender by hand with a
prepared command, short enough that a room doesn't hang."""

DISCOVERY_TIMEOUT_S = 60.0
DISCOVERY_SETTLE_S = 2.5
"""After the first ANNOUNCE an agent listens this long for others: two casts on one group must be told apart by
the operator, never by chance; two announce intervals and a half."""

MANIFEST_WAIT_S = 3.0
"""Image data starts at most this long after the room has gathered, whether or not every manifest arrived: a
receiver without its manifest can't place data, so a short wait saves a second sending."""

# -- control API -----------------------------------------------------------------------------------------------

CONTROL_BODY_BYTES_MAX = 64 * KIB
"""Request bodies without a need-bitmap: the largest, a completion report, has under 4 KiB."""

NEED_BODY_BYTES_MAX = 48 * MIB
"""Bodies with a need-bitmap: 2^28 bits are 32 MiB, and base64 of what zlib can't shorten is 43 MiB."""

NAME_BYTES_MAX = 64
"""A receiver's name: Linux host names have at most 64 octets (HOST_NAME_MAX)."""

ERROR_TEXT_BYTES_MAX = 2000
"""A receiver's error message: room for a path and a sentence of advice, not for a flood."""

INVENTORY_ENTRIES_MAX = 32
INVENTORY_KEY_BYTES_MAX = 32
INVENTORY_VALUE_BYTES_MAX = 256
"""What a machine tells about itself, serial numbers, model, disk: at most 9 MiB for 1024 receivers."""

CHECK_IN_WAIT_S_MAX = 25.0
"""How long a daemon holds a check-in open for a cast to come: proxies and firewalls forget connections that are silent
for 30 s."""

CHECK_IN_AFTER_S_MAX = 300.0
"""A machine that waits longer until it asks again looks switched off."""

HARDWARE_ADDRESSES_MAX = 16
"""A machine's network cards: a server with four ports, their virtual functions left out."""

MACHINE_ID_BYTES_MAX = 64

# -- NACK and GRTT (RFC 5401, RFC 5740) --------------------------------------------------------------------------

GRTT_INITIAL_S = 0.05
GRTT_MIN_S = 0.001
GRTT_MAX_S = 5.0

NACK_AT_ONCE_COUNT = 10
"""In a group of this many everybody asks at once: no back-off is shorter than the few datagrams it would save."""

NACK_CROWD = 5.0
"""NACKs that a large group may send for one loss that all have, before the repair silences the rest."""

REPAIR_LATENCY_S = 0.02
"""From a NACK at the sender to its repair on the wire: the batches that are already encoded go first."""

NACK_RETRY_GRTT_COUNT = 4.0
"""A NACK is repeated when no repair came within this many GRTT."""

NACK_RETRY_MIN_S = 0.03

NACK_BLOCKS_PER_DATAGRAM_MAX = 100
"""Runs in one NACK: 1.3 KB of msgpack in the worst case, which keeps it under the control limit."""

NACK_DATAGRAMS_PER_ROUND_MAX = 4
"""A receiver that lost everything asks for the lowest blocks first and for the rest in later rounds."""

REORDER_DATAGRAM_COUNT = 128
"""How far the sequence number may run past a block's last symbol before what it lacks counts as lost: three
super-datagrams of 44, since networks reorder between queues, not across seconds."""

# -- rate -----------------------------------------------------------------------------------------------------

RATE_BYTES_PER_S_MIN = 125_000.0
"""1 Mbit/s: the floor of automatic control; below it a cast of gigabytes is better ended than slowed."""

RATE_BYTES_PER_S_START = 25_000_000.0
"""200 Mbit/s: safe on a gigabit classroom switch, and six doublings from 10 Gbit/s."""

RATE_BYTES_PER_S_MAX = 1_250_000_000.0
"""10 Gbit/s: what one sending thread can fill."""

QUEUE_DELAY_HIGH_S = 0.003
"""A queue that never empties below this is a full link: 375 KB at 1 Gbit/s, more than a burst of ours and less than the
buffer of a cheap switch's port."""

BURST_SYMBOLS = 44
"""Datagrams of one super-datagram: what a full queue or a bridge drops at once."""

INTERLEAVE_BLOCKS = 4
INTERLEAVE_SYMBOLS = 11
"""Where losses come in bursts this many blocks are sent together, in stripes of this many symbols: a super-datagram
holds four of them, so that losing it costs each block one."""

PARITY_FRACTION_MAX = 0.30
"""Proactive repair symbols per source symbol at most; beyond it NACKs are cheaper than parity that everybody
pays for."""

STANDING_COUNT = 3
STANDING_INTERVAL_S = 0.1
"""A change of somebody's standing is said three times, and again with each ANNOUNCE."""

# -- stragglers ----------------------------------------------------------------------------------------------------

SLOW_BELOW_DEFAULT = 0.3
"""A receiver that could go at a third of the group's rate holds it back less than it would cost to serve it twice."""

SLOW_BELOW_MIN = 0.01
SLOW_BELOW_MAX = 0.9
"""Rates are known to a few per cent: closer to the group's own, ordinary receivers would be stragglers by turns."""

SLOW_FOR_S_DEFAULT = 10.0
"""Longer than a disk's cache flush or a student's log-on script."""

SLOW_FOR_S_MIN = 0.5
"""A few reports: less is no judgement."""

SLOW_FOR_S_MAX = 3600.0

# -- memory ---------------------------------------------------------------------------------------------------

ASSEMBLY_BYTES_DEFAULT = 96 * MIB
"""Buffers for blocks that are being received, decoded or written; with the interpreter, the receive slab and the
read-back buffers the agent stays below 300 MB."""

PLAN_SYMBOLS_MAX = 704
"""Symbols of one transmit batch: 16 super-datagrams of 44, a megabyte of frames."""
