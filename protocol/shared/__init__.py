"""Small helpers: units, sequence numbers, block masks, feedback timing."""
