"""Reading a disk and packing its blocks: the part of imaging that sender and agent share; it isn't sans-IO."""
