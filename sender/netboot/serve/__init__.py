"""``diskcast netboot serve``: DHCP, TFTP and HTTP for machines that boot from the network."""
