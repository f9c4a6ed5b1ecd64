"""Hardware of this machine: read from sysfs and by smartctl, and watched."""
