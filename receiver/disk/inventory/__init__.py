"""The block devices of this machine, what uses them, and what is on them, as the kernel reports them."""
