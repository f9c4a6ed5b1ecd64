"""Small helpers without a protocol of their own: units, sequence numbers, block masks, timing."""
