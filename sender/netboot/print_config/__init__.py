"""``diskcast netboot print-config``: the settings of other DHCP servers for booting machines."""
