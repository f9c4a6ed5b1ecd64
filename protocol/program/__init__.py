"""Shared parts of both programs that aren't sans-IO: command lines, options, findings, file reads."""
