"""Images for other programs, in virtual machines."""
