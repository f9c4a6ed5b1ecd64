"""Declarative field tables for binary and JSON messages."""
