"""Block devices of this machine as the kernel reports them: identity, holders, content."""
