"""The daemon's configuration: its keys and limits, and what is said of a file that is wrong."""
