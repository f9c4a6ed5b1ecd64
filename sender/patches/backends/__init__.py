"""Backends of machine patches: places and tools by which a machine's settings become blocks of its disk."""
