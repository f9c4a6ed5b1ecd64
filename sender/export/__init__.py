"""Images for other programs: an NBD server, files of virtual machines, and a virtual machine to look inside."""
