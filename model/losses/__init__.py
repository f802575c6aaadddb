"""One loss per file; file name = config name."""
