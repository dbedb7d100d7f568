"""Speed measurements: a table, and JSON with --json."""
