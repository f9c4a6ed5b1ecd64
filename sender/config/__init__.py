"""The daemon's configuration: keys, limits, the file, and the errors of a wrong file."""
