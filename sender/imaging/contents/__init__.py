"""Contents of images: partitions, filesystems, operating systems, and differences."""
