"""Bodies of requests and responses: models, pages, CSV, event streams and files."""
