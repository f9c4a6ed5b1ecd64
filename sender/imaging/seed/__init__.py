"""Seed partitions of golden images, which machine patches fill."""
