"""``diskcast netboot build``: Debian's packages and the agent, made into a kernel and an initrd."""
