"""Commands that need no network: restore an image, compare a disk with one, list the disks."""
