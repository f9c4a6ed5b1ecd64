"""The diskcast protocol, sans-IO: bytes, arrays and ``now`` come in; plans, effects and events go out.

Nothing in this package opens a socket or a file, reads a clock or starts a thread; the same objects run
under asyncio in the sender, under trio in the receiver and under a seeded simulator in the tests.
"""
