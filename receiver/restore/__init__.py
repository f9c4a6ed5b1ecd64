"""Commands that need no network: restore an image, compare a disk with an image, list the disks."""
