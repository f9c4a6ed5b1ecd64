"""Shared parts of the two programs that are not sans-IO: command lines, findings, reports."""
