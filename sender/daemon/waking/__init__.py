"""Wake-on-LAN: magic packets to machines, in waves, and the machines' signs of life."""
