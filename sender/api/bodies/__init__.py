"""Bodies of responses and their parts: models, pages, CSV, event streams and files."""
