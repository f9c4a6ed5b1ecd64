"""The wire format: one annotated class per message, from which codec, checks and documentation are derived."""
