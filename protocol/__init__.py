"""The diskcast protocol, sans-IO: bytes, arrays and ``now`` come in; plans and events go out.

No module of this package opens a socket or a file, reads a clock or starts a thread, except in
:mod:`protocol.program`. The same objects run under asyncio in the sender, under trio in the receiver and under a
seeded simulator in the tests.
"""
