"""Machine patches: the blocks of an image that differ for one machine, and the decision whether to apply them."""
