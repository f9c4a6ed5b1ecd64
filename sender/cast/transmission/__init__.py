"""The data path of a cast: load blocks, encode frames, transmit them at a given rate."""
