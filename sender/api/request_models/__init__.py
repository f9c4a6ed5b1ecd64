"""Request bodies: strict pydantic models with a limit on every field, one module per resource."""
