"""Reports of a cast for the operator: snapshots, texts, tables and progress."""
