"""The wire format: one annotated class a message is the table that everything else is derived from."""
